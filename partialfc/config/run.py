"""The sections of a recipe that say how a run goes: its length, what it evaluates, saves and reports."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from partialfc.config.types import (
    Count,
    Duration,
    Interval,
    Natural,
    NonNegative,
    SetScore,
    Settings,
    Time,
    unit,
)
from partialfc.errors import InputError

Images = Annotated[Count, unit("images")]
Steps = Annotated[Count, unit("steps")]


class TrainConfig(Settings, frozen=True):
    """How long, and by how many images a step."""

    length: Duration
    """Length of the run."""
    batch: Images = 512
    """Images of a step, over all ranks."""
    micro_batch: Annotated[int, Meta(ge=2), unit("images")] | None = None
    """Images normalised together; unset: a rank's share of the batch when the run began."""
    max_skipped: Steps = 100
    """Steps in a row that are not finite, after which the run has diverged."""


class EvaluationConfig(Settings, frozen=True):
    """Verification on every .bin of `data.path`, and on other sets."""

    every: Duration = 0
    """0: only before training and at the end."""
    batch: Images = 64
    """Images embedded at once on a rank."""
    sets: tuple[str, ...] = ()
    """Paths of further sets: .bin files, folders of them, of IJB, of a gallery and probes."""


class CheckpointConfig(Settings, frozen=True):
    """What is saved, and where a run goes on."""

    every: Interval = "15 minutes"
    """0: only at the end, and when the run is stopped."""
    keep: Count = 2
    """How many of the newest stay."""
    keep_best: SetScore | None = None
    """The checkpoint of the evaluation with the best such score stays, too."""
    resume: str = "auto"
    """auto: from the newest under `output`; never; or the path of a checkpoint."""
    changes: Literal["refuse", "allow"] = "refuse"
    """Whether a run goes on where its settings, or its pack, are not those it was made with."""


class InitialCenters(Settings, frozen=True, kw_only=True):
    """Class centres of another run, for the identities that both know, and those of new ones."""

    source: str | None = msgspec.field(name="from", default=None)
    """A run, a checkpoint of one, or the file of a head: ElasticFace's `header.pth`, or `weight` [C, D]. Unset: all are new."""
    map: str | None = None
    """A file with a line for each identity of the pack: its label in that run, or `new`. Unset: the same identities."""
    new: Literal["drawn", "mean"] = "drawn"
    """mean: of the embeddings of an identity's images, by `init.backbone`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is None and (self.map is not None or self.new == "drawn"):
            raise InputError("init.centers: without `from` all identities are new; wanted `new: mean` alone")


class InitConfig(Settings, frozen=True):
    """Where a run begins that goes on from no checkpoint."""

    backbone: str | None = None
    """Weights: a run, a checkpoint, a .pth, .pt or .safetensors."""
    centers: InitialCenters | None = None
    """Class centres: `{from: RUN, map: FILE, new: mean}`."""
    freeze: Duration = 0
    """How long the backbone then stands still, its running statistics too, while the class centres are learnt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone is None and self.means:
            raise InputError("init.centers.new: mean, of embeddings by no network; wanted init.backbone")

    @property
    def means(self) -> bool:
        """Whether centres of new identities begin as the mean of their embeddings."""
        return self.centers is not None and self.centers.new == "mean"


class DistillationConfig(Settings, frozen=True):
    """Learning from a teacher: class centres follow its embeddings of their images (AdaDistill, arXiv 2407.01332)."""

    embeddings: str | None = None
    """The teacher's, of the pack in `data.path`: the folder that `partialfc embed` wrote. Unset: no teacher."""
    regression: NonNegative = 0.0
    """Weight of 1 - cos(student, teacher), the mean over a batch's images, which is added to the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.regression and self.embeddings is None:
            raise InputError("distillation.regression: wants a teacher; wanted distillation.embeddings, too")


class ReportConfig(Settings, frozen=True):
    """What the log and TensorBoard get."""

    every: Steps = 20
    """Between log lines."""
    histograms: Steps = 200
    """Between looks at cosines, margins and memory, each one more pass over the active rows."""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where the run is shown; of none, no pictures are drawn."""
    pictures: Literal["local", "remote", "off"] = "local"
    """Loggers that get pictures of faces, and embeddings with them. local: those that keep them on this machine (TensorBoard);
    remote: all, so that training faces leave the machine with wandb or mlflow; off: none."""


class LaunchConfig(Settings, frozen=True):
    """How the ranks are started and watched."""

    restarts: Natural = 0
    """Times that all ranks are started again when one has died."""
    requeues: Natural = 100
    """Times that a SLURM job that was stopped queues itself again."""
    timeout: Time = "10 minutes"
    """Time that a rank may stand still in a step before all end."""
    flight_recorder: bool = False
    """Record the collectives of each rank, and write them to `flight_recorder/` in the output if the run hangs."""
    numa: bool = False
    """Bind each rank to the CPU cores and the memory nearest to its GPU."""
