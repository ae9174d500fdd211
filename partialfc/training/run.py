"""Everything that a training run consists of, built from its recipe; and what of it is saved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.backbones import Backbone, build_backbone, for_inference, move_to_device
from partialfc.config import Config
from partialfc.config.durations import in_steps
from partialfc.data import RecordDataset, synthetic
from partialfc.data.augment import network_input
from partialfc.data.images import Pixels
from partialfc.data.loader import Loader
from partialfc.data.sampler import Order, check_world_size
from partialfc.data.stored_embeddings import PackEmbeddings
from partialfc.errors import InputError
from partialfc.evaluation.embed import Embeddings, Progress, embed_faces, embed_sets
from partialfc.evaluation.loading import load_sets, paths_of
from partialfc.evaluation.sets import EvaluationSet
from partialfc.head import HeadStep, PartialFC
from partialfc.head.state import CLASS_IDS
from partialfc.head.storage.catch_up import MAX_STEPS
from partialfc.inference.weights import AVERAGE, BACKBONE, load_weights, read_weights
from partialfc.monitoring.diagnostics import StepDiagnostics
from partialfc.runtime import comm, dtensors
from partialfc.runtime.checkpoint import Checkpoints, Found, State
from partialfc.runtime.comm import Ranks
from partialfc.runtime.precision import choose_algorithms
from partialfc.runtime.timing import peak_memory
from partialfc.training.backbone_optimizer import BackboneOptimizer
from partialfc.training.health import Health
from partialfc.training.init_from_run import take_known
from partialfc.training.microbatches import MicroBatches
from partialfc.training.replicas import MovingAverage, RunningStatistics

MOMENTS = "backbone_moments"


@dataclass
class Run:
    """A run after `step` steps."""

    config: Config
    ranks: Ranks
    order: Order
    backbone: Backbone
    statistics: RunningStatistics
    average: MovingAverage[Backbone] | None  # of the backbone; then this is what is used
    head: PartialFC
    optimizer: BackboneOptimizer
    micro_batches: MicroBatches
    loader: Loader
    sets: list[EvaluationSet]
    health: Health
    step: int = 0
    seconds: float = 0.0  # that its steps took, up to the checkpoint it goes on from
    stopped: int = 0  # the signal that ended it before its last step

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every image is seen once."""
        return self.order.steps_per_epoch

    @property
    def last_step(self) -> int:
        """How many steps the run has."""
        return in_steps(self.config.train.length, self.steps_per_epoch)

    def embed_sets(self, stop: Callable[[], int], progress: Progress) -> Embeddings:
        """The embeddings of every evaluation set's images, the same on every rank. stop, progress: see `embed_sets` of
        evaluation.
        """
        batch = self.config.evaluation.batch_size
        used = self.average.network if self.average else self.backbone
        autocast = self.optimizer.autocast()
        return embed_sets(
            used, self.sets, self.ranks, batch=batch, autocast=autocast, stop=stop, progress=progress
        )

    def embed_faces(self, faces: Sequence[Pixels]) -> NDArray[np.float32]:
        """Unit embeddings [n, D] of images of the backbone's size, by this rank alone, once the run has ended."""
        used = self.average.network if self.average else self.backbone
        used.eval()
        batch, autocast = self.config.evaluation.batch_size, self.optimizer.autocast()
        return embed_faces(used, faces, self.ranks.device, batch=batch, autocast=autocast)

    def observe(self, step: HeadStep) -> StepDiagnostics:
        """A closer look at a step between its forward and the head's update; nothing waits."""
        memory = comm.of_each_rank(peak_memory(self.ranks.device), self.ranks.group, self.ranks.device)
        return StepDiagnostics(self.step + 1, self.head.observe(step), memory)

    def state(self) -> State:
        """Return all tensors that the next step depends on, sharing memory. Changes nothing.

        Everything random is a function of seed and step.
        """
        scale = self.optimizer.loss_scale
        average = {AVERAGE: self.average.network.state_dict()} if self.average else {}
        return average | {
            BACKBONE: self.backbone.state_dict(),
            MOMENTS: self.optimizer.moments,
            "loss_scale": {"value": scale.value, "streak": scale.streak},
            "head": {name: it for name, it in self.head.state_dict().items() if name != CLASS_IDS},
        }

    def replicas(self) -> dict[str, Tensor]:
        """Return parameters and buffers that must be equal on all ranks, by name."""
        tensors = {f"{BACKBONE}.{name}": it for name, it in self.backbone.state_dict().items()}
        if self.average:
            tensors |= {f"{AVERAGE}.{name}": it for name, it in self.average.network.state_dict().items()}
        return tensors

    def restore(self, checkpoints: Checkpoints, found: Found, *, changed: bool = False) -> list[str]:
        """Go on from a checkpoint. changed: it was made with other settings, and may be without what those of now have
        brought in: that begins now, and is returned by its names.
        """
        self.optimizer.make_moments()
        state = self.state()
        begun = checkpoints.load(found, state, lambda name: changed and _may_begin_late(name))
        if any(name.startswith(f"{AVERAGE}.") for name in begun):
            self.begin_average()
        moments = f"{MOMENTS}."
        # "backbone_moments.PARAMETER.KIND"
        self.optimizer.forget(
            {it[len(moments) :].rpartition(".")[0] for it in begun if it.startswith(moments)}
        )
        self.head.load_state_dict(state["head"])
        self.step, self.seconds = found.manifest.step, found.manifest.seconds
        return begun

    def begin_average(self) -> None:
        """Begin the moving average, where there is one, anew: as the backbone is now."""
        if self.average:
            self.average.network.load_state_dict(self.backbone.state_dict())


def _may_begin_late(name: str) -> bool:
    """Whether what this tensor holds in a fresh run will do for one that is under way."""
    return not name.startswith(f"{BACKBONE}.") and name not in (
        "head.centers",
        "head.seen_classes",
        "head.steps",
    )


def build_run(config: Config, ranks: Ranks, *, drawn: bool = True) -> Run:
    """A fresh run, at step 0. drawn: False where the class centres are loaded next. No collectives; InputError or OSError
    where recipe, data and ranks do not fit.
    """
    check_world_size(config, ranks.size)
    dtensors.prepare()
    if ranks.device.type == "cuda":
        choose_algorithms(deterministic=config.deterministic)
    if config.data.synthetic is not None:
        synthetic.ensure(Path(config.data.path), config.data.synthetic)
    torch.manual_seed(config.seed)  # the initial weights, the same on every rank
    backbone = build_backbone(config.backbone)
    if config.init.backbone is not None:
        source = Path(config.init.backbone)
        load_weights(backbone, read_weights(source), source)
    move_to_device(backbone, ranks.device, channels_last=config.backbone.channels_last)
    statistics = RunningStatistics(backbone)
    optimizer = BackboneOptimizer(backbone, config.optim, ranks)
    dataset = RecordDataset(Path(config.data.path), image_size=backbone.input_size, reader=config.data.reader)
    lanes = config.data.lanes if config.data.order == "blocks" else None
    order = Order(config.seed, config.train.global_batch_size, len(dataset), lanes)
    if config.head.unsampled == "decay" and in_steps(config.train.length, order.steps_per_epoch) > MAX_STEPS:
        raise InputError(f"head.unsampled: decay takes runs of up to {MAX_STEPS:,} steps; wanted hold")
    teacher = _teacher(config)
    head = _head(config, dataset.num_classes, order.steps_per_epoch, ranks, drawn=drawn)
    if drawn and config.init.centers is not None:
        take_known(head, config.init.centers)
    return Run(
        config=config,
        ranks=ranks,
        order=order,
        backbone=backbone,
        statistics=statistics,
        average=_average(config, backbone, ranks),
        head=head,
        optimizer=optimizer,
        micro_batches=_micro_batches(config, backbone, optimizer, ranks),
        loader=Loader(dataset, order, config.data, config.augment, ranks, teacher),
        sets=load_sets(paths_of(config)),
        health=Health(ranks.device),
    )


def _teacher(config: Config) -> PackEmbeddings | None:
    """InputError where its embeddings are not the student's to be."""
    if config.distillation.teacher_embeddings is None:
        return None
    found, wanted = (
        PackEmbeddings(Path(config.distillation.teacher_embeddings)),
        config.backbone.embedding_size,
    )
    if found.width != wanted:
        raise InputError(
            f"backbone.embedding_size: {wanted}; wanted {found.width}, as distillation.teacher_embeddings has it"
        )
    return found


def _average(config: Config, backbone: Backbone, ranks: Ranks) -> MovingAverage[Backbone] | None:
    if not config.optim.ema_decay:
        return None
    with torch.random.fork_rng(devices=[]):  # its initial weights are not used
        network = build_backbone(for_inference(config.backbone))
    move_to_device(network, ranks.device, channels_last=config.backbone.channels_last)
    return MovingAverage(backbone, network, config.optim.ema_decay)


def _micro_batches(
    config: Config, backbone: Backbone, optimizer: BackboneOptimizer, ranks: Ranks
) -> MicroBatches:
    def forward(images: Tensor) -> Tensor:
        with optimizer.autocast():
            embeddings: Tensor = backbone(network_input(images))
        return embeddings.float()

    return MicroBatches(
        backbone,
        forward,
        optimizer.gradients,
        size=config.train.micro_batch_size,
        seed=config.seed,
        rank=ranks.rank,
        recorded=_recorded(config, ranks),
    )


def _recorded(config: Config, ranks: Ranks) -> bool:
    """Whether the backbone's steps are CUDA graphs; InputError where they cannot be."""
    if not config.backbone.cuda_graphs or ranks.device.type != "cuda":
        return False
    images, size = config.train.global_batch_size // ranks.size, config.train.micro_batch_size
    if size is not None and size < images:
        raise InputError(
            f"backbone.cuda_graphs: wants a rank's {images} images in one micro-batch; found train.micro_batch_size: {size}"
        )
    return True


def _head(config: Config, num_classes: int, steps_per_epoch: int, ranks: Ranks, *, drawn: bool) -> PartialFC:
    return PartialFC(
        num_classes,
        config.backbone.embedding_size,
        config.loss,
        config=config.head,
        optim=None if config.head.optim else config.rows_rule,
        seed=config.seed,
        steps_per_epoch=steps_per_epoch,
        device=ranks.device,
        group=ranks.group,
        drawn=drawn,
    )
