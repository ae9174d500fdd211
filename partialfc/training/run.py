"""Training run: its objects, built from a recipe, and its saved state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.backbones import Backbone, build_backbone, inference_config, move_to_device
from partialfc.backbones.flops import count_forward_flops
from partialfc.config import Config
from partialfc.config.durations import to_steps
from partialfc.data import RecordDataset, synthetic
from partialfc.data.augment import network_input
from partialfc.data.images import ImageArray
from partialfc.data.loader import BatchLoader
from partialfc.data.sampler import SampleOrder, check_world_size
from partialfc.data.stored_embeddings import StoredEmbeddings
from partialfc.errors import InputError
from partialfc.evaluation.embed import Embeddings, Progress, embed_images, embed_sets
from partialfc.evaluation.loading import evaluation_set_paths, load_sets
from partialfc.evaluation.sets import EvaluationSet
from partialfc.head import HeadStep, PartialFC
from partialfc.head.state import CLASS_IDS
from partialfc.head.storage.catch_up import MAX_STEPS
from partialfc.inference.weights import BACKBONE, EMA, load_weights, read_weights
from partialfc.monitoring.diagnostics import StepDiagnostics
from partialfc.runtime import comm, dtensors
from partialfc.runtime.checkpoint import CheckpointManager, NestedState, VerifiedCheckpoint
from partialfc.runtime.comm import DistContext
from partialfc.runtime.precision import set_deterministic
from partialfc.runtime.timing import peak_memory
from partialfc.training.backbone_optimizer import BackboneOptimizer
from partialfc.training.flops import StepFlops
from partialfc.training.health import TrainingHealth
from partialfc.training.init_from_run import load_known_centers
from partialfc.training.microbatches import MicroBatchRunner
from partialfc.training.replicas import ModelEMA, RunningStats

BACKBONE_OPTIM_STATE = "backbone_moments"


@dataclass
class Run:
    """Training run after `step` steps."""

    config: Config
    dist_ctx: DistContext
    sample_order: SampleOrder
    backbone: Backbone
    running_stats: RunningStats
    ema: ModelEMA[Backbone] | None  # of the backbone; replaces it for evaluation and export
    head: PartialFC
    optimizer: BackboneOptimizer
    micro_batch_runner: MicroBatchRunner
    loader: BatchLoader
    eval_sets: list[EvaluationSet]
    health: TrainingHealth
    flops: StepFlops
    step: int = 0
    elapsed_seconds: float = 0.0  # duration of its steps up to the checkpoint that it was resumed from
    stop_signal: int = 0  # signal that ended the run before its last step; 0 if none

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps per epoch."""
        return self.sample_order.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Number of steps of the run."""
        return to_steps(self.config.train.length, self.steps_per_epoch)

    def embed_sets(self, stop: Callable[[], int], progress: Progress) -> Embeddings:
        """Return the embeddings of every evaluation set's images, equal on all ranks.

        Arguments as of `evaluation.embed.embed_sets`.
        """
        batch = self.config.evaluation.batch_size
        used = self.ema.network if self.ema else self.backbone
        autocast = self.optimizer.autocast()
        return embed_sets(
            used,
            self.eval_sets,
            self.dist_ctx,
            batch_size=batch,
            autocast=autocast,
            get_stop_signal=stop,
            progress=progress,
        )

    def embed_images(self, images: Sequence[ImageArray]) -> NDArray[np.float32]:
        """Return L2-normalized embeddings `[n, D]` of images, computed by this rank alone after the run."""
        used = self.ema.network if self.ema else self.backbone
        used.eval()
        batch, autocast = self.config.evaluation.batch_size, self.optimizer.autocast()
        return embed_images(used, images, self.dist_ctx.device, batch_size=batch, autocast=autocast)

    def collect_diagnostics(self, head_step: HeadStep) -> StepDiagnostics:
        """Return diagnostics of a step, between its forward and the head's update, without synchronization.

        Returns:
            Diagnostics.
        """
        memory = comm.gather_scalars(
            peak_memory(self.dist_ctx.device), self.dist_ctx.group, self.dist_ctx.device
        )
        return StepDiagnostics(self.step + 1, self.head.observe(head_step), memory)

    def state(self) -> NestedState:
        """Return all tensors that the next step depends on, sharing memory. Changes nothing.

        Everything random is a function of seed and step.
        """
        scale = self.optimizer.loss_scale
        average = {EMA: self.ema.network.state_dict()} if self.ema else {}
        return average | {
            BACKBONE: self.backbone.state_dict(),
            BACKBONE_OPTIM_STATE: self.optimizer.state,
            "loss_scale": {"value": scale.value, "streak": scale.growth_streak},
            "head": {name: it for name, it in self.head.state_dict().items() if name != CLASS_IDS},
        }

    def replicas(self) -> dict[str, Tensor]:
        """Return parameters and buffers that must be equal on all ranks, by name."""
        tensors = {f"{BACKBONE}.{name}": it for name, it in self.backbone.state_dict().items()}
        if self.ema:
            tensors |= {f"{EMA}.{name}": it for name, it in self.ema.network.state_dict().items()}
        return tensors

    def restore(
        self, checkpoints: CheckpointManager, checkpoint: VerifiedCheckpoint, *, changed: bool = False
    ) -> list[str]:
        """Load a checkpoint.

        Args:
            checkpoints: Checkpoints of the run.
            checkpoint: Checkpoint to load.
            changed: Whether the checkpoint was written with a different config. It may then lack state
                that new settings introduce.

        Returns:
            Names of tensors that the checkpoint lacks; they are initialized.
        """
        self.optimizer.materialize_state()
        state = self.state()
        begun = checkpoints.load(checkpoint, state, lambda name: changed and _is_optional(name))
        if any(name.startswith(f"{EMA}.") for name in begun):
            self.reset_ema()
        moments = f"{BACKBONE_OPTIM_STATE}."
        # "backbone_moments.PARAMETER.STATE"
        self.optimizer.reset_state(
            {it[len(moments) :].rpartition(".")[0] for it in begun if it.startswith(moments)}
        )
        self.head.load_state_dict(state["head"])
        self.step, self.elapsed_seconds = checkpoint.manifest.step, checkpoint.manifest.seconds
        return begun

    def reset_ema(self) -> None:
        """Reset the EMA, if there is one, to the current backbone."""
        if self.ema:
            self.ema.network.load_state_dict(self.backbone.state_dict())


def _is_optional(name: str) -> bool:
    """Return True if a resumed run may start with a fresh tensor of this name."""
    return not name.startswith(f"{BACKBONE}.") and name not in (
        "head.centers",
        "head.seen_classes",
        "head.steps",
    )


def build_run(config: Config, dist_ctx: DistContext, *, init_centers: bool = True) -> Run:
    """Build a new run at step 0, without collectives.

    Args:
        config: Recipe.
        dist_ctx: This rank and the others.
        init_centers: Whether to initialize the class centers; False if they are loaded next.

    Returns:
        The run.

    Raises:
        InputError: If recipe, data and ranks are inconsistent.
        OSError: If a file cannot be read.
    """
    check_world_size(config, dist_ctx.world_size)
    dtensors.preload()
    if dist_ctx.device.type == "cuda":
        set_deterministic(deterministic=config.deterministic)
    if config.data.synthetic is not None:
        synthetic.ensure_pack(Path(config.data.path), config.data.synthetic)
    torch.manual_seed(config.seed)  # initial weights, equal on all ranks
    backbone = build_backbone(config.backbone)
    if config.init.backbone is not None:
        source = Path(config.init.backbone)
        load_weights(backbone, read_weights(source), source)
    move_to_device(backbone, dist_ctx.device, channels_last=config.backbone.channels_last)
    statistics = RunningStats(backbone)
    optimizer = BackboneOptimizer(backbone, config.optim, dist_ctx)
    dataset = RecordDataset(Path(config.data.path), image_size=backbone.input_size, reader=config.data.reader)
    lanes = config.data.lanes if config.data.order == "blocks" else None
    order = SampleOrder(config.seed, config.train.global_batch_size, len(dataset), lanes)
    if config.head.unsampled == "decay" and to_steps(config.train.length, order.steps_per_epoch) > MAX_STEPS:
        raise InputError(f"head.unsampled: decay supports runs of up to {MAX_STEPS:,} steps; expected hold")
    traced, length = config.log.profile, to_steps(config.train.length, order.steps_per_epoch)
    if traced is not None and traced.last > length:
        raise InputError(
            f"log.profile: steps {traced.start} to {traced.last}; expected at most the {length} steps of the run"
        )
    teacher = load_teacher(config)
    head = _build_head(config, dataset.num_classes, order.steps_per_epoch, dist_ctx, drawn=init_centers)
    if init_centers and config.init.centers is not None:
        load_known_centers(head, config.init.centers)
    return Run(
        config=config,
        dist_ctx=dist_ctx,
        sample_order=order,
        backbone=backbone,
        running_stats=statistics,
        ema=_build_ema(config, backbone, dist_ctx),
        head=head,
        optimizer=optimizer,
        micro_batch_runner=_build_micro_batch_runner(config, backbone, optimizer, dist_ctx),
        loader=BatchLoader(dataset, order, config.data, config.augment, dist_ctx, teacher),
        eval_sets=load_sets(evaluation_set_paths(config), skip_unusable=config.evaluation.skip_unusable),
        health=TrainingHealth(dist_ctx.device),
        flops=StepFlops(
            count_forward_flops(backbone),
            images=config.train.global_batch_size // dist_ctx.world_size,
            batch=config.train.global_batch_size,
            width=head.centers.width * config.head.subcenters,
        ),
    )


def load_teacher(config: Config) -> StoredEmbeddings | None:
    """Open the teacher embeddings.

    Returns:
        The embeddings; None without a teacher.

    Raises:
        InputError: If their size differs from the student's.
    """
    if config.distillation.teacher_embeddings is None:
        return None
    found, expected = (
        StoredEmbeddings(Path(config.distillation.teacher_embeddings)),
        config.backbone.embedding_size,
    )
    if found.embedding_size != expected:
        raise InputError(
            f"backbone.embedding_size: {expected}; expected {found.embedding_size}, as in distillation.teacher_embeddings"
        )
    return found


def _build_ema(config: Config, backbone: Backbone, dist_ctx: DistContext) -> ModelEMA[Backbone] | None:
    if not config.optim.ema_decay:
        return None
    with torch.random.fork_rng(devices=[]):  # the initial weights are not used
        network = build_backbone(inference_config(config.backbone))
    move_to_device(network, dist_ctx.device, channels_last=config.backbone.channels_last)
    return ModelEMA(backbone, network, config.optim.ema_decay)


def _build_micro_batch_runner(
    config: Config, backbone: Backbone, optimizer: BackboneOptimizer, dist_ctx: DistContext
) -> MicroBatchRunner:
    def forward(images: Tensor) -> Tensor:
        with optimizer.autocast():
            embeddings: Tensor = backbone(network_input(images))
        return embeddings.float()

    return MicroBatchRunner(
        backbone,
        forward,
        optimizer.gradients,
        micro_batch_size=config.train.micro_batch_size,
        seed=config.seed,
        rank=dist_ctx.rank,
        use_cuda_graphs=_uses_cuda_graphs(config, dist_ctx),
    )


def _uses_cuda_graphs(config: Config, dist_ctx: DistContext) -> bool:
    """Return True if the backbone uses CUDA graphs.

    Raises:
        InputError: If it cannot use them.
    """
    if not config.backbone.cuda_graphs or dist_ctx.device.type != "cuda":
        return False
    images, size = config.train.global_batch_size // dist_ctx.world_size, config.train.micro_batch_size
    if size is not None and size < images:
        raise InputError(
            f"backbone.cuda_graphs: requires a rank's {images} images in one micro-batch; found train.micro_batch_size: {size}"
        )
    return True


def _build_head(
    config: Config, num_classes: int, steps_per_epoch: int, dist_ctx: DistContext, *, drawn: bool
) -> PartialFC:
    return PartialFC(
        num_classes,
        config.backbone.embedding_size,
        config.loss,
        config=config.head,
        optim=None if config.head.optim else config.center_optimizer,
        seed=config.seed,
        steps_per_epoch=steps_per_epoch,
        device=dist_ctx.device,
        group=dist_ctx.group,
        drawn=drawn,
    )
