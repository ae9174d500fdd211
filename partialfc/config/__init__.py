"""Recipe schema: types, units, defaults and bounds of all settings. Nothing else in the package defines a setting.

Each section has its own module. The docstring below a field documents its key; `partialfc settings` prints
them all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from partialfc.config.backbones import (
    AnyBackbone,
    BackboneConfig,
    CustomBackbone,
    IResNet18,
    IResNet34,
    IResNet50,
    IResNet100,
    IResNet200,
    IResNet2060,
    IResNetConfig,
    IResNetTiny,
    MobileFaceNetConfig,
    MobileFaceNetLarge,
    TimmBackbone,
    ViT,
    ViTBase,
    ViTLarge,
    ViTSmall,
    ViTTiny,
)
from partialfc.config.data import AugmentConfig, DataConfig, Reader, SyntheticData
from partialfc.config.head import HeadConfig
from partialfc.config.losses import (
    AdaFace,
    AngularLoss,
    AnyLoss,
    ArcFace,
    CombinedMargin,
    CosFace,
    CosineSoftmax,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    LinearSoftmax,
    MagFace,
    MarginOrder,
    ScaledLoss,
    SphereFace2,
    UniFace,
)
from partialfc.config.optimizers import (
    SGD,
    AdamW,
    AnyOptimizer,
    AnySchedule,
    CenterAdamW,
    CenterOptimizer,
    CenterSGD,
    CenterUpdate,
    CosineSchedule,
    FollowTeacher,
    MultiStepSchedule,
    PolynomialSchedule,
    TorchOptimizer,
)
from partialfc.config.run import (
    CenterInitConfig,
    CheckpointConfig,
    DistillationConfig,
    EvaluationConfig,
    InitConfig,
    LaunchConfig,
    LogConfig,
    ProfileConfig,
    TrainConfig,
)
from partialfc.config.types import IGNORE_LABEL, Duration, Interval, Seed, Settings
from partialfc.errors import InputError

__all__ = [
    "IGNORE_LABEL",
    "SGD",
    "AdaFace",
    "AdamW",
    "AngularLoss",
    "AnyBackbone",
    "AnyLoss",
    "AnyOptimizer",
    "AnySchedule",
    "ArcFace",
    "AugmentConfig",
    "BackboneConfig",
    "CenterAdamW",
    "CenterInitConfig",
    "CenterOptimizer",
    "CenterSGD",
    "CenterUpdate",
    "CheckpointConfig",
    "CombinedMargin",
    "Config",
    "CosFace",
    "CosineSchedule",
    "CosineSoftmax",
    "CurricularFace",
    "CustomBackbone",
    "DataConfig",
    "DistillationConfig",
    "Duration",
    "ElasticArcFace",
    "ElasticCosFace",
    "EvaluationConfig",
    "FollowTeacher",
    "HeadConfig",
    "IResNet18",
    "IResNet34",
    "IResNet50",
    "IResNet100",
    "IResNet200",
    "IResNet2060",
    "IResNetConfig",
    "IResNetTiny",
    "InitConfig",
    "Interval",
    "LaunchConfig",
    "LinearSoftmax",
    "LogConfig",
    "MagFace",
    "MarginOrder",
    "MobileFaceNetConfig",
    "MobileFaceNetLarge",
    "MultiStepSchedule",
    "PolynomialSchedule",
    "ProfileConfig",
    "Reader",
    "ScaledLoss",
    "Settings",
    "SphereFace2",
    "SyntheticData",
    "TimmBackbone",
    "TorchOptimizer",
    "TrainConfig",
    "UniFace",
    "ViT",
    "ViTBase",
    "ViTLarge",
    "ViTSmall",
    "ViTTiny",
    "load_config",
]


class Config(Settings, frozen=True):
    """Complete recipe."""

    data: DataConfig
    train: TrainConfig
    backbone: AnyBackbone = IResNetTiny()
    head: HeadConfig = HeadConfig()
    loss: AnyLoss = CosFace()
    augment: AugmentConfig = AugmentConfig()
    optim: AnyOptimizer = SGD()
    schedule: AnySchedule = PolynomialSchedule()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    init: InitConfig = InitConfig()
    distillation: DistillationConfig = DistillationConfig()
    launch: LaunchConfig = LaunchConfig()
    output: str = "output"
    """Output folder of the run."""
    seed: Seed = 0
    """Seed of all random numbers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device. auto: cuda if available."""
    deterministic: bool = False
    """Deterministic algorithms on a GPU: the same bits in every run, slower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.order == "blocks" and self.train.global_batch_size % self.data.lanes:
            raise InputError(
                f"data.lanes: {self.data.lanes}; "
                f"expected a divisor of train.global_batch_size, {self.train.global_batch_size}"
            )
        if self.distillation.teacher_embeddings is not None and self.head.optim is not None:
            raise InputError(
                "head.optim: incompatible with distillation.teacher_embeddings, where class centers follow the teacher"
            )
        if self.init.uses_mean_init and (self.head.subcenters > 1 or not self.loss.on_sphere):
            raise InputError(
                "init.centers.new: mean; requires head.subcenters: 1, and a loss with normalized centers"
            )
        self.head.validate_with(self.center_optimizer, self.loss)

    @property
    def center_optimizer(self) -> CenterUpdate:
        """Update of the class centers.

        Raises:
            InputError: If the recipe does not specify one.
        """
        if self.distillation.teacher_embeddings is not None:
            return FollowTeacher()
        if self.head.optim is not None:
            return self.head.optim
        if isinstance(self.optim, TorchOptimizer):
            raise InputError(
                "optim.name: torch is for the backbone; set head.optim to sgd or adamw for the class centers"
            )
        return self.optim

    @property
    def center_lr(self) -> float:
        """Learning rate of the class centers, before the schedule."""
        return (self.head.optim or self.optim).lr


def load_config(name: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Load a recipe from a file, or a bundled one by name, with `section.key=value` overrides.

    Returns:
        Validated config.

    Raises:
        InputError: If it is invalid; the message is one line.
    """
    from partialfc import recipe  # imported late: a config made in Python needs no YAML

    return recipe.load(name, overrides, Config)
