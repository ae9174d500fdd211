"""PartialFC: softmax over class centres that are split across ranks, on the classes a step works on.

"Partial FC" (arXiv 2010.05222) and "Killing Two Birds with One Stone" (2203.15565).
Legend: W ranks, B images in the global batch, b = B / W of them on this rank, C classes, n of them on this rank, S of
those active in a step, D embedding width.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.functional import normalize

from partialfc.config import AnyMargin, HeadConfig, RowRule
from partialfc.head.active import Selection
from partialfc.head.active_rows import CENTERS
from partialfc.head.centers import Centers, rule_of
from partialfc.head.checks import check_arguments, check_embeddings, check_labels
from partialfc.head.distillation import check_teacher, follow_teacher
from partialfc.head.kernels import operations_of
from partialfc.head.kinds import kind_of
from partialfc.head.losses import Loss
from partialfc.head.losses.by_step import LossByStep
from partialfc.head.neighbors import Neighbors
from partialfc.head.products import Products
from partialfc.head.rows.frozen import FrozenRows
from partialfc.head.saved import Saved, SavedModule
from partialfc.head.scaling import scaling_of
from partialfc.head.scratch import Sender
from partialfc.head.seen import SeenClasses
from partialfc.head.shard import class_range
from partialfc.head.sharded import ShardedLoss
from partialfc.head.step import HeadStep, Observation, check_step, loss_of_step
from partialfc.runtime import comm


class PartialFC(SavedModule):
    """The classification head of a training run, sharded over `group` (default: all ranks, or this process alone).

        step = head.prepare(labels, number)  # labels of the global batch, on the host; may be done ahead of time
        loss = head(embeddings, step)        # this rank's embeddings; the same scalar on every rank
        loss.backward()                      # the embeddings' gradient; the centres are untouched
        head.update(step, lr)                # the centres

    The loss is the mean over the global batch. A rank's embeddings get the gradient of this loss, so that parameters
    which every rank has a replica of *sum* their gradients over the ranks. DistributedDataParallel and FSDP take the
    mean of the ranks' gradients instead: say `backbone_gradients="mean"`, and the embeddings' gradient is multiplied
    by W, which makes that mean the same sum. Lightning's strategies of these names are the same two.

    A loss that is weighted before backward(), such as `0.1 * loss`, moves backbone and centres a tenth, as it would move
    any parameter. A loss that was multiplied against the underflow of fp16 is told to `update`, as `loss_scale`.

    The class centres are no parameters: `update` is their optimizer. They are in `state_dict()`, as DTensors where there
    is a process group, which torch.distributed.checkpoint saves and loads at any number of ranks. optim: how they
    step, which may also stand in `config`; without, SGD with its defaults; TeacherRule(): they follow a teacher, see
    `update`. steps_per_epoch: wanted where settings have stages by epochs. drawn: False leaves the centres 0, to be loaded.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: AnyMargin,
        *,
        config: HeadConfig = HeadConfig(),
        optim: RowRule | None = None,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        group: ProcessGroup | None = None,
        backbone_gradients: Literal["sum", "mean"] = "sum",
        drawn: bool = True,
    ) -> None:
        super().__init__(device, dtype)
        self.group = group if group is not None else comm.default_group()
        self.num_classes, self.embedding_size = num_classes, embedding_size
        self.margin, self.config, self.seed = margin, config, seed
        check_arguments(num_classes, embedding_size, margin, backbone_gradients)
        rank, self._world_size = comm.place_in(self.group)
        self._gradient_factor = self._world_size if backbone_gradients == "mean" else 1
        device = self.like.device  # with its index, which other threads need
        self._products = Products(config.products, device, dtype)
        self._loss_of = LossByStep(margin, steps_per_epoch, num_classes * config.largest_rate, device, dtype)
        kind = kind_of(self._loss_of(0), config.subcenters)
        self._operations = operations_of(config.kernels, device, kind.rows)
        self.centers = Centers(
            class_range(num_classes, rank, self._world_size),
            embedding_size + kind.beside,
            config,
            rule_of(config, optim, margin),
            seed=seed,
            device=device,
            dtype=dtype,
            products=self._products,
            operations=self._operations,
            drawn=drawn,
        )
        self._neighbors = self._new_neighbors()
        self._selection, self._sender = self._new_selection(steps_per_epoch), Sender(device)
        self._sharded = self._new_sharded(kind.sharded)
        self._seen, self._steps = SeenClasses(len(self.centers.owned)), np.zeros((), np.int64)
        self._due: HeadStep | None = None  # the step whose update comes next
        self._complete = True  # there is a state

    @property
    def steps(self) -> int:
        """How many steps the centres have taken, skipped ones included."""
        return int(self._steps)

    def gather_labels(self, local: Tensor) -> Tensor:
        """The labels [B] of the global batch, int64 on the host, from this rank's [b]; the same b on every rank.

        For loops that know their own rank's labels only. Two all-gathers; where the group is NCCL's, the host waits
        for the device.
        """
        check_labels(local, "[b] of this rank")
        sizes = comm.gather_rows(torch.tensor([len(local)], device=self.centers.device), self.group).tolist()
        if len(set(sizes)) > 1:
            raise ValueError(
                f"labels: expected as many on every rank, got {sizes}; leave out the last batch (drop_last=True), or fill "
                "it up with images labeled -1"
            )
        everyones = comm.gather_rows(local.to(self.centers.device, torch.int64), self.group)
        return everyones.cpu()

    def prepare(self, labels: Tensor, number: int) -> HeadStep:
        """Sample the classes of step `number`, and start to bring their rows to the device where they live elsewhere.

        labels: integers [B] of the global batch, on the host, equal on every rank; -1 is ignored. No communication, and
        nothing that waits for the device; cost O(B + S). Best called while the step before computes; steps are to be
        taken in the order in which they were prepared. Raises InputError on a label that is no class and not -1,
        ValueError on labels of another kind, shape or device.
        """
        loss = self._loss_of(number)
        classes = self._selection(labels, number, loss)
        self.centers.prefetch(classes)
        sending = self._sender.start(list(classes.tensors().values()))
        return HeadStep(self, number, len(labels), loss, classes, sending)

    def forward(self, embeddings: Tensor, step: HeadStep) -> Tensor:
        """Mean loss over the valid images of the global batch; the same scalar on every rank.

        embeddings: this rank's [b, D], not normalised, of any floating type; computed on in the centres' type. Without
        gradient (under torch.no_grad(), or of embeddings that want none) `step` stays as it was, and may be forwarded
        again. Raises RuntimeError where another step's update is due, ValueError on embeddings that are none. Collectives:
        one all-gather and one all-reduce, one more where the loss needs all target cosines; backward: one reduce-scatter.
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
            rows = self.centers.activate(step.classes_on_device())
        else:
            rows = self.centers.look_at(step.classes_on_device())
        with torch.autocast(embeddings.device.type, enabled=False):
            begin = partial(self._sharded.begin, rows, step.batch, keep=keep)
            everyones, norms = self._gathered(step.loss, embeddings.to(self.centers.dtype), begin)
            if not keep:
                return self._sharded.forward(step.loss, everyones, norms, rows, keep=False).loss
            loss = loss_of_step(everyones, norms, self._sharded, rows, step)
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
        """After backward(): take one optimizer step, at learning rate `lr`, of the active rows, and of no others.

        finite: a bool scalar on the device; where false nothing changes. loss_scale: what the loss was multiplied by
        against underflow; it is divided out of the rows' gradient. scaler: a GradScaler that says both, between its
        step(optimizer) and its update().
        teacher: its embeddings [b, D] of this rank's images, of any length and floating type, where the centres follow
        a teacher: these have no learning rate; one all-gather. RuntimeError where forward() or backward() is still to come.
        """
        check_step(step, "update()")
        step.check_head(self, "update()")
        check_teacher(teacher, self.centers, step.batch // self._world_size)
        finite, loss_scale = scaling_of(scaler, finite, loss_scale, self.centers.device)
        flight, gradient = step.end("update()")
        self._due = None
        if finite is None:
            finite = torch.ones((), dtype=torch.bool, device=self.centers.device)
        masked_lr = finite.to(self.centers.dtype) * lr
        weight = gradient.to(self.centers.dtype) / loss_scale
        if teacher is not None:
            everyones = comm.gather_rows(normalize(teacher.to(self.centers.dtype)), self.group)
            follow_teacher(flight.rows, flight.forwarded.embeddings, everyones, finite)
        else:
            self._sharded.update(flight.forwarded, flight.rows, weight, masked_lr, finite)
        self._sharded.take_state(flight.forwarded, weight, masked_lr, finite)
        self.centers.release(step.classes, masked_lr, finite)
        if self._neighbors is not None:
            self._neighbors.refresh(step.number, self.centers.tensors[CENTERS])
        self._seen.add(step.classes.target_rows)
        self._steps += 1

    def settle(self) -> None:
        """Bring all rows up to date where unsampled rows decay: to where a dense optimizer has them now.

        Rows that were not sampled are behind until they are. Call it before `state_dict()` is used for anything but
        resuming, such as exporting centers. Later steps change by rounding only.
        """
        self._check_nothing_due("settle()")
        self.centers.settle()

    def extra_repr(self) -> str:
        """Return what `repr` shows of the head."""
        return (
            f"num_classes={self.num_classes}, embedding_size={self.embedding_size}, margin={self.margin!r}, "
            f"classes {self.centers.owned.start} to {self.centers.owned.stop} of rank {comm.place_in(self.group)[0]}"
        )

    def discard(self, step: HeadStep) -> None:
        """Give up a step that was prepared or forwarded: no row changes, and its memory is free again."""
        step.check_head(self, "discard()")
        step.discard()
        self.centers.drop(step.classes)
        if self._due is step:
            self._due = None

    @torch.no_grad()
    def observe(self, step: HeadStep) -> Observation:
        """A closer look at a step between its forward and its update; changes nothing.

        One more pass over the active rows, and two small collectives; nothing waits for the device.
        """
        step.check_head(self, "observe()")
        flight = step.seen("observe()")
        target, nearest = self._sharded.cosines(flight.forwarded, flight.rows)
        never = self._seen.never(step.classes.target_rows)
        everyones = comm.of_each_rank(never, self.group, self.centers.device)
        return Observation(target, nearest, flight.rows.classes.drawn_margins, everyones)

    def freeze(self) -> dict[str, FrozenRows]:
        """The tensors of `state_dict()` that live in host memory or files, as they are now: see FrozenRows; none with
        `memory: device`. Each is to be closed.
        """
        return self.centers.freeze()

    def _new_neighbors(self) -> Neighbors | None:
        if self.config.sampling == "uniform":
            return None
        centers = self.centers
        return Neighbors(
            self.num_classes, centers.owned, self.config, self._products, self.group, centers.device
        )

    def _new_selection(self, steps_per_epoch: int | None) -> Selection:
        return Selection(
            self.num_classes,
            self.centers.owned,
            self.config,
            steps_per_epoch=steps_per_epoch,
            seed=self.seed,
            noisy=self.centers.noisy,
            dtype=self.centers.dtype,
            neighbors=self._neighbors,
        )

    def _new_sharded(self, kind: type[ShardedLoss]) -> ShardedLoss:
        return kind(
            width=self.centers.width,
            subcenters=self.config.subcenters,
            interclass_threshold=self.config.interclass_threshold,
            logits_budget=0 if self.centers.follow_teacher else self.config.logits_budget << 20,
            products=self._products,
            operations=self._operations,
            group=self.group,
            device=self.centers.device,
            dtype=self.centers.dtype,
        )

    def _saved(self) -> Saved:
        shards, replicated = self.centers.state()
        shards["seen_classes"] = torch.from_numpy(self._seen.flags)
        replicated["steps"] = torch.from_numpy(self._steps)
        replicated |= {f"loss_{name}": value for name, value in self._loss_of.state.items()}
        if self._neighbors is not None:
            replicated |= self._neighbors.state()
        return Saved(shards, replicated, self.num_classes, self.group, self.centers.device)

    def _before_load(self) -> None:
        self._check_nothing_due("load_state_dict()")

    def _loaded(self) -> None:
        self.centers.loaded(self.steps)

    def _gathered(
        self, loss: Loss, embeddings: Tensor, meanwhile: Callable[[], None]
    ) -> tuple[Tensor, Tensor | None]:
        """Everyone's embeddings [B, D], as the loss wants them; and the norms [B] that they had, where the loss needs them."""
        return comm.gather_with_gradient(
            loss.prepared(embeddings),
            loss.norms_of(embeddings),
            self.group,
            gradient_factor=self._gradient_factor,
            sent_as=self._products.of_logits,
            meanwhile=meanwhile,
        )

    def _check_nothing_due(self, call: str) -> None:
        if self._due is not None:
            raise RuntimeError(
                f"{call}: update() or discard() of step {self._due.number} comes first; where gradients of the backbone "
                "are accumulated, the head is updated after each backward()"
            )
