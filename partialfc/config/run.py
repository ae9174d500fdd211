"""Sections of a recipe that define a run: length, evaluation, checkpoints, logging, launching."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from partialfc.config.types import (
    Duration,
    Interval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SetScore,
    Settings,
    TimeSpan,
    with_unit,
)
from partialfc.errors import InputError

ImageCount = Annotated[PositiveInt, with_unit("images")]
StepCount = Annotated[PositiveInt, with_unit("steps")]


class TrainConfig(Settings, frozen=True):
    """Length and batch sizes of a run."""

    length: Duration
    """Length of the run."""
    global_batch_size: ImageCount = 512
    """Images of a step on all ranks."""
    micro_batch_size: Annotated[int, Meta(ge=2), with_unit("images")] | None = None
    """Images that BatchNorm normalizes together; unset: the local batch of a rank at the start of the run."""
    max_skipped_steps: StepCount = 100
    """Consecutive steps with non-finite gradients after which the run counts as diverged."""


class EvaluationConfig(Settings, frozen=True):
    """Verification on each .bin set of `data.path` and on other sets."""

    every: Duration = 0
    """Interval of evaluations. 0: before training and at the end only."""
    batch_size: ImageCount = 64
    """Images per forward on a rank."""
    sets: tuple[str, ...] = ()
    """Paths of other sets: .bin files, folders of them, IJB, or a gallery with probes."""
    skip_unusable: bool = False
    """IJB: leave out images with five equal points, and templates with scores of 0 only. false: refuse the set."""


class CheckpointConfig(Settings, frozen=True):
    """Saving and resuming."""

    every: Interval = "15 minutes"
    """Interval of checkpoints. 0: only at the end and when the run is stopped."""
    keep: PositiveInt = 2
    """Number of latest checkpoints to keep."""
    keep_best: SetScore | None = None
    """Score whose best checkpoint is kept in addition."""
    resume: str = "auto"
    """Checkpoint to resume from. auto: the latest in `output`; never: none; or a path."""
    on_config_change: Literal["fail", "allow"] = "fail"
    """Resuming with other settings or another pack. fail: refuse; allow: continue and record the changes."""


class CenterInitConfig(Settings, frozen=True, kw_only=True):
    """Class centers from another run for identities that both have, and centers of new identities."""

    source: str | None = msgspec.field(name="from", default=None)
    """Run, checkpoint, or head file: `header.pth` of ElasticFace, or `weight` [C, D]. Unset: all identities are new."""
    map: str | None = None
    """File with a line per identity of the pack: its label in the other run, or `new`. Unset: the same identities."""
    new: Literal["random", "mean"] = "random"
    """Centers of new identities. mean: mean embedding of their images by `init.backbone`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is None and (self.map is not None or self.new == "random"):
            raise InputError("init.centers: without `from` all identities are new; expected only `new: mean`")


class InitConfig(Settings, frozen=True):
    """Initial weights of a run without a checkpoint."""

    backbone: str | None = None
    """Backbone weights: run, checkpoint, .pth, .pt or .safetensors."""
    centers: CenterInitConfig | None = None
    """Class centers: `{from: RUN, map: FILE, new: mean}`."""
    freeze_backbone: Duration = 0
    """Length of the initial phase in which the backbone and its running statistics are frozen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone is None and self.uses_mean_init:
            raise InputError("init.centers.new: mean; requires init.backbone")

    @property
    def uses_mean_init(self) -> bool:
        """True if centers of new identities start as the mean of their embeddings."""
        return self.centers is not None and self.centers.new == "mean"


class DistillationConfig(Settings, frozen=True):
    """Distillation: class centers follow the embeddings of a teacher (AdaDistill, arXiv 2407.01332)."""

    teacher_embeddings: str | None = None
    """Embeddings of the pack by the teacher: a folder of `partialfc embed`. Unset: no teacher."""
    cosine_weight: NonNegativeFloat = 0.0
    """Weight of the mean of 1 - cos(student, teacher) over the batch, added to the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cosine_weight and self.teacher_embeddings is None:
            raise InputError("distillation.cosine_weight: requires distillation.teacher_embeddings")


class ProfileConfig(Settings, frozen=True):
    """Steps of which torch.profiler writes a trace."""

    start: Annotated[int, Meta(ge=2), with_unit("steps")] = 100
    """First traced step, counted as in the log; the profiler warms up in the step before."""
    steps: StepCount = 5
    """Number of traced steps."""

    @property
    def last(self) -> int:
        """Last traced step."""
        return self.start + self.steps - 1


class LogConfig(Settings, frozen=True):
    """Log lines and loggers."""

    every: StepCount = 20
    """Interval of log lines."""
    histograms_every: StepCount = 200
    """Interval of histograms, memory and cosines; each needs another pass over the active rows."""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Loggers of the run; without any, no figures are rendered."""
    pictures: Literal["local", "remote", "off"] = "local"
    """Loggers that get face images, and embeddings with them. local: those that keep them on this machine
    (TensorBoard); remote: all, so that training faces leave the machine with wandb or mlflow; off: none.
    """
    profile: ProfileConfig | None = None
    """Trace of some steps for each rank in `profile/` of the output, e.g. `{start: 100, steps: 5}`. Unset: none."""


class LaunchConfig(Settings, frozen=True):
    """Start and supervision of the ranks."""

    max_restarts: NonNegativeInt = 0
    """Number of restarts of all ranks after one has died."""
    max_requeues: NonNegativeInt = 100
    """Number of times that a stopped SLURM job requeues itself."""
    step_timeout: TimeSpan = "10 minutes"
    """Time without progress in a step after which all ranks end."""
    join_timeout: TimeSpan = "10 minutes"
    """Time for the launchers of all machines to join."""
    flight_recorder: bool = False
    """Record the collectives of each rank, and write them to `flight_recorder/` in the output if the run hangs."""
    numa: bool = False
    """Bind each rank to the CPU cores and the memory nearest to its GPU."""
