"""PartialFC: softmax over class centers that are sharded over ranks, on the active classes of a step.

Partial FC: arXiv 2010.05222 and arXiv 2203.15565.

Shapes:
    W: ranks
    B: images in the global batch
    b: images of this rank, B / W
    C: classes
    n: classes of this rank
    S: active classes of this rank in a step
    D: components of an embedding
"""

from functools import partial
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from partialfc.config import AnyLoss, CenterUpdate, HeadConfig
from partialfc.head import backward
from partialfc.head.arguments import (
    check_arguments,
    check_embeddings,
    check_labels,
    check_teacher,
    read_scaling,
)
from partialfc.head.buffers import BufferPool, DeviceUploader
from partialfc.head.centers import ActiveCenters, Centers, resolve_center_optimizer
from partialfc.head.forward import FORWARDS, ForwardInputs, target_and_nearest_cosines
from partialfc.head.kernels import build_kernels
from partialfc.head.kernels.torch_centers import CENTERS
from partialfc.head.losses import LossSchedule
from partialfc.head.neighbors import Neighbors
from partialfc.head.precision import MatmulPrecision
from partialfc.head.sampling import ClassSampler
from partialfc.head.state import Saved, SavedModule, SeenClasses, class_range
from partialfc.head.step import HeadStep, Observation, check_step, head_loss
from partialfc.head.storage.host import RowSnapshot
from partialfc.head.workspace import LogitGrads, StepShape, Workspace
from partialfc.runtime import comm


class PartialFC(SavedModule):
    """Classification head of a training run, sharded by class over the ranks of `group`.

        step = head.prepare(labels, number)  # labels of the global batch, on the host; can run ahead of time
        loss = head(embeddings, step)        # embeddings of this rank; the same scalar on all ranks
        loss.backward()                      # gradient of the embeddings; the centers do not change
        head.update(step, lr)                # update of the centers

    The loss is the mean over the global batch, and the embeddings of a rank get its gradient. Replicated parameters
    therefore *sum* their gradients over the ranks. DistributedDataParallel, FSDP and Lightning's strategies of these
    names average them instead. With `backbone_gradients="mean"`, the gradient of the embeddings is multiplied by the
    number of ranks, so that their mean is the same sum.

    A loss that is weighted before backward(), such as `0.1 * loss`, scales the update of backbone and centers like any
    parameter's. `update` has to know the scale of a loss that was scaled for float16, see `scaler`.

    The class centers are not parameters: `update` is their optimizer. `state_dict()` contains them as DTensors if
    there is a process group; torch.distributed.checkpoint saves and loads them at any number of ranks.

    Args:
        num_classes: Number of classes of all ranks.
        embedding_size: Number of components of an embedding.
        loss: Settings of the loss.
        config: Sampling, storage and precision of the centers.
        optim: Update rule of the centers, unless `config` contains it. Default: SGD with its defaults. With
            FollowTeacher(), the centers follow a teacher.
        seed: Seed of the initial centers and of all random draws.
        steps_per_epoch: Required if settings have stages that begin at epochs.
        device: Device of the centers.
        dtype: Dtype of the computation.
        group: Process group; default: all ranks, or this process alone.
        backbone_gradients: Reduction of the backbone's gradients over the ranks.
        drawn: Initialize the centers; otherwise they are 0, to be loaded.

    Raises:
        InputError: The settings do not go together.
        TypeError: `loss` is not the settings of a loss.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        loss: AnyLoss,
        *,
        config: HeadConfig = HeadConfig(),
        optim: CenterUpdate | None = None,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        group: ProcessGroup | None = None,
        backbone_gradients: Literal["sum", "mean"] = "sum",
        drawn: bool = True,
    ) -> None:
        super().__init__(device, dtype)
        check_arguments(num_classes, embedding_size, loss, backbone_gradients)
        self.group = group if group is not None else comm.default_group()
        self.num_classes, self.embedding_size = num_classes, embedding_size
        self.loss, self.config, self.seed = loss, config, seed
        rank, self._world_size = comm.rank_and_world_size(self.group)
        self._gradient_factor = self._world_size if backbone_gradients == "mean" else 1
        device = self.like.device  # with an index, which other threads need
        self._losses = LossSchedule(
            loss, steps_per_epoch, num_classes * config.max_sample_rate, device, dtype
        )
        first_loss = self._losses(0)
        precision, scratch = MatmulPrecision(config.matmul_precision, device, dtype), BufferPool(device)
        kernels = build_kernels(
            config.kernels, device, one_direction=first_loss.on_sphere and config.subcenters == 1
        )
        self.centers = Centers(
            class_range(num_classes, rank, self._world_size),
            embedding_size + first_loss.extra_columns,
            config,
            resolve_center_optimizer(config, optim, loss),
            on_sphere=first_loss.on_sphere,
            seed=seed,
            device=device,
            dtype=dtype,
            precision=precision,
            kernels=kernels,
            scratch=scratch,
            drawn=drawn,
        )
        self._work = Workspace(
            width=self.centers.width,
            subcenters=config.subcenters,
            interclass_threshold=config.interclass_threshold,
            logits_budget=0 if self.centers.follows_teacher else config.logits_budget << 20,
            precision=precision,
            kernels=kernels,
            scratch=scratch,
            group=self.group,
            device=device,
            dtype=dtype,
        )
        self._neighbors: Neighbors | None = None
        if config.sampling == "hard":
            self._neighbors = Neighbors(
                num_classes, self.centers.local_classes, config, precision, self.group, device
            )
        self._sampler = ClassSampler(
            num_classes,
            self.centers.local_classes,
            config,
            steps_per_epoch=steps_per_epoch,
            seed=seed,
            uses_stochastic_rounding=self.centers.uses_stochastic_rounding,
            dtype=dtype,
            neighbors=self._neighbors,
        )
        self._uploader = DeviceUploader(device)
        self._seen, self._steps = SeenClasses(len(self.centers.local_classes)), np.zeros((), np.int64)
        self._due: HeadStep | None = None  # step whose update is due
        self._complete = True  # `_saved` can be called

    @property
    def steps(self) -> int:
        """Number of updates, including skipped ones."""
        return int(self._steps)

    def gather_labels(self, local: Tensor) -> Tensor:
        """Return the labels of the global batch, int64 `[B]` on the host, from those of this rank, `[b]`.

        Collectives: two all-gathers, with a host sync if the group uses NCCL.

        Raises:
            TypeError: `local` is not a tensor.
            ValueError: The labels are not integers `[b]`, or ranks have different numbers of them.
        """
        check_labels(local, "[b] of this rank")
        sizes = comm.all_gather_rows(
            torch.tensor([len(local)], device=self.centers.device), self.group
        ).tolist()
        if len(set(sizes)) > 1:
            raise ValueError(
                f"labels: expected as many on every rank, got {sizes}; leave out the last batch (drop_last=True), or fill "
                "it up with images labeled -1"
            )
        gathered = comm.all_gather_rows(local.to(self.centers.device, torch.int64), self.group)
        return gathered.cpu()

    def prepare(self, labels: Tensor, number: int) -> HeadStep:
        """Sample the classes of a step, and start to copy their rows to the device if they are in host memory.

        There is no communication and no host sync; the cost is O(B + S). Call it while the previous step computes.
        Steps run in the order of their preparation.

        Args:
            labels: Labels of the global batch, integers `[B]` on the host, equal on all ranks; -1 is ignored.
            number: Index of the step.

        Returns:
            Step for `forward` and `update`.

        Raises:
            InputError: A label is neither a class nor -1.
            TypeError: `labels` is not a tensor.
            ValueError: Labels have another dtype, shape or device.
        """
        loss = self._losses(number)
        classes = self._sampler(labels, number, loss)
        self.centers.prefetch(classes)
        upload = self._uploader.start(list(classes.tensors().values()))
        return HeadStep(self, number, len(labels), loss, classes, upload)

    def forward(self, embeddings: Tensor, step: HeadStep) -> Tensor:
        """Return the mean loss over the valid images of the global batch, the same scalar on all ranks.

        Without gradient, under torch.no_grad() or for embeddings that require none, `step` does not change and can be
        used again. Collectives: an all-gather and an all-reduce, one more all-reduce if the loss needs the target
        cosines, and a reduce-scatter in the backward.

        Args:
            embeddings: Embeddings of this rank, not normalized, `[b, D]` in any floating dtype.
            step: Step from `prepare`.

        Raises:
            RuntimeError: The update of another step is due, or `step` was used already.
            TypeError: `step` is not a HeadStep.
            ValueError: Embeddings have a wrong dtype, shape or device.
        """
        check_step(step, "forward()")
        step.check_head(self, "forward()")
        check_embeddings(
            embeddings,
            step.number,
            width=self.embedding_size,
            batch=step.batch,
            world_size=self._world_size,
            device=self.centers.device,
        )
        keep = torch.is_grad_enabled() and embeddings.requires_grad
        if keep:
            step.check_open("forward()")
            self._check_nothing_due(f"forward() of step {step.number}")
            centers = self.centers.activate(step.classes_on_device(self._work))
        else:
            centers = self.centers.activate_read_only(step.classes_on_device(self._work))
        with torch.autocast(embeddings.device.type, enabled=False):
            inputs = self._gathered(step, embeddings.to(self.centers.dtype), centers, keep=keep)
            if not keep:
                return FORWARDS[step.loss.objective](self._work, inputs).loss
            loss = head_loss(self._work, inputs, step)
        self._due = step
        return loss

    @torch.no_grad()
    def update(
        self,
        step: HeadStep,
        lr: float,
        finite: Tensor | None = None,
        loss_scale: float | Tensor = 1.0,
        teacher: Tensor | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Take one optimizer step of the active rows, after backward().

        Args:
            step: Step of the forward.
            lr: Learning rate.
            finite: Bool scalar on the device; if False, nothing changes.
            loss_scale: Factor by which the loss was multiplied for float16; the gradient of the rows is divided by it.
            teacher: Embeddings of the teacher for the images of this rank, `[b, D]`, if the centers follow a teacher.
            They
                are gathered, and `lr` has no effect.
            scaler: GradScaler that provides `finite` and `loss_scale`; call `update` between its step(optimizer) and
            its
                update().

        Raises:
            RuntimeError: forward() or backward() of the step, or the scaler's step, is missing.
            TypeError: `step` is not a HeadStep.
            ValueError: Arguments do not go together.
        """
        check_step(step, "update()")
        step.check_head(self, "update()")
        shape = step.batch // self._world_size, self.centers.width
        check_teacher(teacher, shape, self.centers.device, follow=self.centers.follows_teacher)
        finite, loss_scale = read_scaling(scaler, finite, loss_scale, self.centers.device)
        flight, gradient = step.end("update()")
        self._due = None
        if finite is None:
            finite = torch.ones((), dtype=torch.bool, device=self.centers.device)
        masked_lr = finite.to(self.centers.dtype) * lr
        weight = gradient.to(self.centers.dtype) / loss_scale
        by = {"weight": weight, "lr": masked_lr, "finite": finite}
        if teacher is not None:
            gathered = comm.all_gather_rows(normalize(teacher.to(self.centers.dtype)), self.group)
            backward.follow_teacher(flight.centers, flight.context.embeddings, gathered, finite)
        else:
            backward.update_centers(self._work, flight.context, flight.centers, **by)
        backward.update_loss_state(flight.context, **by)
        self.centers.release(step.classes, masked_lr, finite)
        if self._neighbors is not None:
            self._neighbors.refresh(step.number, self.centers.tensors[CENTERS])
        self._seen.add(step.classes.host_target_rows)
        self._steps += 1

    def settle(self) -> None:
        """Apply the missed steps to all rows with `unsampled: decay`, as a dense optimizer would have taken them.

        Call it before `state_dict()` is used for another purpose than resuming, such as an export of the centers. It
        changes later steps by rounding only.
        """
        self._check_nothing_due("settle()")
        self.centers.settle()

    def extra_repr(self) -> str:
        """Return what `repr` shows of the head."""
        return (
            f"num_classes={self.num_classes}, embedding_size={self.embedding_size}, loss={self.loss!r}, "
            f"classes {self.centers.local_classes.start} to {self.centers.local_classes.stop} of rank {comm.rank_and_world_size(self.group)[0]}"
        )

    def discard(self, step: HeadStep) -> None:
        """Discard a step that was prepared or forwarded: no row changes, and its memory is released."""
        step.check_head(self, "discard()")
        step.discard()
        self.centers.discard(step.classes)
        if self._due is step:
            self._due = None

    @torch.no_grad()
    def observe(self, step: HeadStep) -> Observation:
        """Return diagnostics of a step between its forward and its update.

        The cost is a pass over the active rows and two small collectives, without a host sync.
        """
        step.check_head(self, "observe()")
        flight = step.seen("observe()")
        target, nearest = target_and_nearest_cosines(self._work, flight.context, flight.centers)
        never = self._seen.never(step.classes.host_target_rows)
        gathered = comm.gather_scalars(never, self.group, self.centers.device)
        return Observation(target, nearest, flight.centers.classes.drawn_margins, gathered)

    def snapshot(self) -> dict[str, RowSnapshot]:
        """Return snapshots of the tensors of `state_dict()` that are in host memory; the caller closes them."""
        return self.centers.snapshot()

    def _saved(self) -> Saved:
        shards, replicated = self.centers.state()
        shards["seen_classes"] = torch.from_numpy(self._seen.flags)
        replicated["steps"] = torch.from_numpy(self._steps)
        replicated |= {f"loss_{name}": value for name, value in self._losses.state.items()}
        if self._neighbors is not None:
            replicated |= self._neighbors.state()
        return Saved(shards, replicated, self.num_classes, self.group, self.centers.device)

    def _before_load(self) -> None:
        self._check_nothing_due("load_state_dict()")

    def _loaded(self) -> None:
        self.centers.after_load(self.steps)

    def _gathered(
        self, step: HeadStep, embeddings: Tensor, centers: ActiveCenters, *, keep: bool
    ) -> ForwardInputs:
        """Gather the features of all ranks, and return the inputs of the forward."""
        loss, work = step.loss, self._work
        shape = work.shape_of(centers.num_active, step.batch)
        kept = work.kept_grads(shape) if keep else None
        gathered, norms = comm.all_gather_with_grad(
            loss.features(embeddings),
            loss.norms(embeddings),
            self.group,
            gradient_factor=self._gradient_factor,
            comm_dtype=work.precision.logits_dtype,
            overlap_fn=partial(_normalize_first, work, centers, shape, kept),
        )
        return ForwardInputs(loss, gathered, norms, centers, shape, kept)

    def _check_nothing_due(self, call: str) -> None:
        if self._due is not None:
            raise RuntimeError(
                f"{call}: call update() or discard() of step {self._due.number} first; with accumulated gradients of the "
                "backbone, update the head after each backward()"
            )


def _normalize_first(
    work: Workspace, centers: ActiveCenters, shape: StepShape, kept: LogitGrads | None
) -> None:
    """Normalize the first chunk's centers, which needs no embeddings, while these are gathered."""
    for chunk in islice(shape.chunks(), 1):
        part = work.chunk_grads(shape, chunk, kept)
        centers.normalize_ahead(chunk, inverse_norms_=part.inverse_norms)
