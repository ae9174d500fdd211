"""Sections `optim:` and `schedule:` of a recipe, one variant per `name`."""

from typing import Literal

from msgspec import field

from partialfc.config.types import (
    Duration,
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    PositiveFloat,
    Settings,
)
from partialfc.errors import InputError


class CenterSGD(Settings, frozen=True, tag="sgd", tag_field="name"):
    """torch.optim.SGD."""

    lr: PositiveFloat = 0.1
    """Learning rate; it is not scaled with the batch size."""
    momentum: FractionBelowOne = 0.9
    """Momentum factor."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: NonNegativeFloat = 5e-4
    """Weight decay, added to the gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise InputError("optim.nesterov: requires momentum above 0")


class CenterAdamW(Settings, frozen=True, tag="adamw", tag_field="name"):
    """torch.optim.AdamW; a class center counts its own steps."""

    lr: PositiveFloat = 1e-3
    """Learning rate; it is not scaled with the batch size."""
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.999)
    """Decay rates of the running averages of the gradient and its square."""
    eps: PositiveFloat = 1e-8
    """Term added to the denominator."""
    weight_decay: NonNegativeFloat = 1e-2
    """Decoupled weight decay."""


CenterOptimizer = CenterSGD | CenterAdamW  # optimizer of the centers; type of `head.optim`


class FollowTeacher(Settings, frozen=True, tag="teacher", tag_field="name"):
    """Centers follow the embeddings of a teacher instead of gradients (AdaDistill, arXiv 2407.01332)."""


CenterUpdate = CenterOptimizer | FollowTeacher  # any update of the centers

# `matrices` excludes norms, biases and PReLU slopes of the backbone.
WeightDecayScope = Literal["all", "matrices"]
Precision = Literal["float32", "bfloat16", "float16"]
ReduceDtype = Literal["float32", "bfloat16"]


class SGD(CenterSGD, frozen=True, tag="sgd", tag_field="name"):
    """torch.optim.SGD for the backbone, and for the class centers unless `head.optim` is set."""

    weight_decay_on: WeightDecayScope = "all"
    """Parameters with weight decay. matrices: not normalization weights, biases and PReLU slopes."""
    max_grad_norm: NonNegativeFloat = 5.0
    """Largest gradient norm of the backbone; 0: no clipping."""
    precision: Precision = "float32"
    """Dtype of the computation in the backbone."""
    reduce_dtype: ReduceDtype = "float32"
    """Dtype of the gradients of the backbone in the sum over ranks; bfloat16 halves the traffic."""
    ema_decay: FractionBelowOne = 0.0
    """Decay of a moving average of the backbone, which is then evaluated and exported; 0: none."""
    layer_decay: Fraction = 1.0
    """Factor of the learning rate from each block to the previous one, for fine-tuning; 1: the same rate for all."""


# Fields in common with SGD are documented there.
class AdamW(CenterAdamW, frozen=True, tag="adamw", tag_field="name"):
    """torch.optim.AdamW for the backbone, and for the class centers unless `head.optim` is set."""

    weight_decay_on: WeightDecayScope = "all"
    max_grad_norm: NonNegativeFloat = 5.0
    precision: Precision = "float32"
    reduce_dtype: ReduceDtype = "float32"
    ema_decay: FractionBelowOne = 0.0
    layer_decay: Fraction = 1.0


class TorchOptimizer(Settings, frozen=True, tag="torch", tag_field="name"):
    """Any class of torch.optim for the backbone; the class centers then require `head.optim`."""

    optimizer_class: str
    """Class name, such as NAdam, RAdam or Adafactor."""
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the class."""
    kwargs: dict[str, bool | int | float | tuple[float, ...]] = field(default_factory=dict)
    """Other arguments of the class by name."""
    weight_decay_on: WeightDecayScope = "all"
    max_grad_norm: NonNegativeFloat = 5.0
    precision: Precision = "float32"
    reduce_dtype: ReduceDtype = "float32"
    ema_decay: FractionBelowOne = 0.0
    layer_decay: Fraction = 1.0


AnyOptimizer = SGD | AdamW | TorchOptimizer


class PolynomialSchedule(Settings, frozen=True, tag="polynomial", tag_field="name"):
    """(1 - progress) ** power, which reaches 0 at the end."""

    warmup: Duration = 0
    """Length of the linear warmup from 0 to the full rate."""
    power: PositiveFloat = 2.0
    """Exponent of the remaining fraction of the run."""


class CosineSchedule(Settings, frozen=True, tag="cosine", tag_field="name"):
    """Half a cosine, which reaches 0 at the end."""

    warmup: Duration = 0
    """Length of the linear warmup from 0 to the full rate."""


class MultiStepSchedule(Settings, frozen=True, tag="multistep", tag_field="name"):
    """Multiplication by `gamma` at each milestone."""

    milestones: tuple[Duration, ...]
    """Steps or epochs at which the rate decreases."""
    gamma: Fraction = 0.1
    """Factor of the rate at each milestone."""
    warmup: Duration = 0
    """Length of the linear warmup from 0 to the full rate."""


AnySchedule = PolynomialSchedule | CosineSchedule | MultiStepSchedule
