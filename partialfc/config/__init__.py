"""What a recipe may say: types, units, defaults and bounds. Nothing else in the package reads a recipe.

The sections that come in variants are modules of their own: backbones, margins, optimizers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from partialfc import recipe
from partialfc.config.backbones import (
    AnyBackbone,
    Backbone,
    IResNet,
    IResNet18,
    IResNet34,
    IResNet50,
    IResNet100,
    IResNet200,
    IResNetTiny,
    MobileFaceNet,
    ViT,
    ViTBase,
    ViTLarge,
    ViTSmall,
    ViTTiny,
)
from partialfc.config.margins import (
    AdaFace,
    AngularMargin,
    AnyMargin,
    ArcFace,
    Combined,
    CosFace,
    ElasticArcFace,
    ElasticCosFace,
    Margin,
    Order,
    SoftMax,
)
from partialfc.config.optimizers import (
    AdamW,
    AdamWRule,
    AnyOptimizer,
    AnyRule,
    AnySchedule,
    Cosine,
    Polynomial,
    Sgd,
    SgdRule,
    Step,
    TorchOptimizer,
)
from partialfc.config.types import (
    IGNORE,
    Chance,
    Count,
    Duration,
    Fraction,
    Interval,
    Natural,
    Seed,
    SetScore,
    Settings,
    Time,
)
from partialfc.errors import InputError

__all__ = [
    "IGNORE",
    "AdaFace",
    "AdamW",
    "AdamWRule",
    "AngularMargin",
    "AnyBackbone",
    "AnyMargin",
    "AnyOptimizer",
    "AnyRule",
    "AnySchedule",
    "ArcFace",
    "AugmentConfig",
    "Backbone",
    "CheckpointConfig",
    "Combined",
    "Config",
    "CosFace",
    "Cosine",
    "DataConfig",
    "Duration",
    "ElasticArcFace",
    "ElasticCosFace",
    "EvaluationConfig",
    "HeadConfig",
    "IResNet",
    "IResNet18",
    "IResNet34",
    "IResNet50",
    "IResNet100",
    "IResNet200",
    "IResNetTiny",
    "InitConfig",
    "Interval",
    "LaunchConfig",
    "Margin",
    "MobileFaceNet",
    "Order",
    "Polynomial",
    "Reader",
    "ReportConfig",
    "Settings",
    "Sgd",
    "SgdRule",
    "SoftMax",
    "Step",
    "SyntheticData",
    "TorchOptimizer",
    "TrainConfig",
    "ViT",
    "ViTBase",
    "ViTLarge",
    "ViTSmall",
    "ViTTiny",
    "load_config",
]


class SyntheticData(Settings, frozen=True):
    """Built-in identities, drawn and packed into `data.path` when nothing is there."""

    identities: Count = 400
    images: Count = 20  # of each identity
    unseen: Annotated[int, Meta(ge=20)] = 100  # identities of the verification set, never trained on
    pairs: Annotated[int, Meta(ge=20, multiple_of=20)] = 1000  # of the verification set, half of them same
    size: Annotated[int, Meta(ge=32, le=512)] = 112  # pixels
    difficulty: Annotated[float, Meta(ge=0, le=2)] = 1.0  # of pose, light, occlusion, blur and noise
    seed: Seed = 0  # of what is drawn; the run's own seed does not change its data


Reader = Literal["native", "mxnet"]


class DataConfig(Settings, frozen=True):
    path: str  # folder with train.rec, train.idx, property and the .bin verification sets
    workers: Natural = 2  # processes of each rank that read and decode; 0: the rank itself does
    reader: Reader = "native"  # mxnet: its own, in an environment of requirements-mxnet.txt
    # skip: another image takes the place of one that cannot be read
    on_corrupt: Literal["fail", "skip"] = "fail"
    # blocks: neighbouring records, for disks that dislike seeks
    order: Literal["shuffle", "blocks"] = "shuffle"
    lanes: Count = 64  # of `order: blocks`: streams of neighbours, divided among the ranks
    synthetic: SyntheticData | None = None


class AugmentConfig(Settings, frozen=True):
    """Probabilities that an image is changed so, drawn anew in every epoch; in this order."""

    crop: Chance = 0.0  # cut out, 20 to 100 % of the area, 3:4 to 4:3, and enlarged
    low_resolution: Chance = 0.0  # shrunk to 20 to 100 % of its sides, and enlarged again
    blur: Chance = 0.0  # Gaussian, sigma 0.5 to 2 pixels of 112
    photometric: Chance = 0.0  # brightness, contrast and saturation, each times 0.5 to 1.5
    grey: Chance = 0.0
    flip: Chance = 0.5  # left to right

    @property
    def strong(self) -> bool:
        """Whether more than flips may happen."""
        return any((self.crop, self.low_resolution, self.blur, self.photometric, self.grey))


class HeadConfig(Settings, frozen=True):
    sample_rate: Fraction = 1.0  # share of all classes that a step draws, besides the batch's own
    correction: Literal["none", "log_rate"] = "none"  # log_rate: sampled negatives stand for all
    interclass_threshold: Annotated[float, Meta(ge=0, le=1)] = (
        0.0  # cosine; nearer negatives are left out; 0: none
    )
    # decay: momentum and weight decay go on, as if every row took part in every step
    unsampled: Literal["hold", "decay"] = "hold"
    centers: Literal["float32", "bfloat16"] = "float32"  # as stored
    moments: Literal["float32", "bfloat16", "none"] = "float32"  # of the rows' optimizer; none: no momentum
    memory: Literal["device", "host", "file"] = "device"  # where the rows live
    folder: str | None = None  # of `memory: file`, on a fast local disk; holds nothing after the run
    logits_budget: Natural = 4096  # MiB a rank; logits that do not fit are computed twice
    # factors of the products; their sums are in float32. auto: tf32 on a GPU; half: float16 and bfloat16
    products: Literal["auto", "float32", "tf32", "half"] = "auto"
    kernels: Literal["auto", "torch", "triton"] = "auto"  # Triton's on a GPU, where it is installed
    optim: AnyRule | None = None  # of the class centres; unset: the rule and rate of the top level's optim

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory == "file" and self.folder is None:
            raise InputError("head.memory: file, but head.folder does not say where")
        if self.memory != "device" and self.sample_rate == 1:
            raise InputError(
                f"head.memory: {self.memory} brings the sampled rows to the device; with head.sample_rate: 1 "
                "these are all; wanted a rate below 1, or head.memory: device"
            )

    def check_with(self, rule: AnyRule) -> None:
        """InputError where class centres that step by `rule` cannot be treated so."""
        if not isinstance(rule, AdamWRule):
            return
        if self.unsampled == "decay":
            raise InputError(
                "head.unsampled: decay needs optim.name: sgd, whose skipped steps are one product; AdamW's are not"
            )
        if self.moments == "none":
            raise InputError("head.moments: none needs optim.name: sgd; AdamW is its moments")


class TrainConfig(Settings, frozen=True):
    length: Duration  # of the run
    batch: Count = 512  # images of a step, over all ranks
    micro_batch: Annotated[int, Meta(ge=2)] | None = (
        None  # images normalised together; unset: a rank's share of the batch when the run began
    )
    max_skipped: Count = 100  # steps in a row that are not finite, after which the run has diverged


class EvaluationConfig(Settings, frozen=True):
    every: Duration = 0  # 0: only before training and at the end
    batch: Count = 64  # images embedded at once on a rank


class CheckpointConfig(Settings, frozen=True):
    every: Interval = "15 minutes"  # 0: only at the end, and when the run is stopped
    keep: Count = 2  # the newest
    keep_best: SetScore | None = None  # lfw/accuracy: the checkpoint of the best evaluation stays, too
    resume: str = "auto"  # auto: from the newest under `output`; never; or the path of a checkpoint
    # whether a run goes on where its settings, or its pack, are not those it was made with
    changes: Literal["refuse", "allow"] = "refuse"


class InitConfig(Settings, frozen=True):
    """Where a run begins that goes on from no checkpoint."""

    backbone: str | None = None  # weights: a run, a checkpoint, a .pth, .pt or .safetensors


class ReportConfig(Settings, frozen=True):
    every: Count = 20  # steps between log lines
    # steps between looks at cosines, margins and memory, one more pass over the active rows
    histograms: Count = 200


class LaunchConfig(Settings, frozen=True):
    restarts: Natural = 0  # times that all ranks are started again when one has died
    requeues: Natural = 100  # times that a SLURM job that was stopped queues itself again
    timeout: Time = "10 minutes"  # that a rank may stand still in a step before all end


class Config(Settings, frozen=True):
    """A recipe, whole."""

    data: DataConfig
    train: TrainConfig
    backbone: AnyBackbone = IResNetTiny()
    head: HeadConfig = HeadConfig()
    margin: AnyMargin = CosFace()
    augment: AugmentConfig = AugmentConfig()
    optim: AnyOptimizer = Sgd()
    schedule: AnySchedule = Polynomial()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    report: ReportConfig = ReportConfig()
    init: InitConfig = InitConfig()
    launch: LaunchConfig = LaunchConfig()
    output: str = "output"  # the run's folder
    seed: Seed = 0  # of everything that is drawn
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    # on a GPU: the same bits in every run, at the cost of algorithms that are faster, and of looking for them
    deterministic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.order == "blocks" and self.train.batch % self.data.lanes:
            raise InputError(
                f"data.lanes: {self.data.lanes}, which take equal parts of a batch; "
                f"wanted a divisor of train.batch, {self.train.batch}"
            )
        if self.head.optim is None and isinstance(self.optim, TorchOptimizer):
            raise InputError(
                "optim.name: torch is for the backbone; wanted a head.optim, sgd or adamw, for the class centres"
            )
        self.head.check_with(self.rows_optim)

    @property
    def rows_optim(self) -> AnyRule:
        """How the class centres step."""
        if self.head.optim is not None:
            return self.head.optim
        assert not isinstance(self.optim, TorchOptimizer), "checked above"
        return self.optim


def load_config(name: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The recipe of a file, or that ships under a name, with `section.key=value` overrides; an InputError names in one
    line what is wrong.
    """
    return recipe.load(name, overrides, Config)
