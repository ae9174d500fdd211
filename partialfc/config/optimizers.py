"""`optim:` and `schedule:` of a recipe, a variant for each `name`."""

from typing import Literal

from msgspec import field

from partialfc.config.types import Duration, Fraction, NonNegative, Positive, Probability, Settings
from partialfc.errors import InputError


class SgdRule(Settings, frozen=True, tag="sgd", tag_field="name"):
    """As torch.optim.SGD."""

    lr: Positive = 0.1
    """Learning rate, used as it is, whatever the batch."""
    momentum: Probability = 0.9
    """Share of the last step's direction that is kept."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: NonNegative = 5e-4
    """Added to the gradient, times the weight."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise InputError("optim.nesterov: wants a momentum above 0")


class AdamWRule(Settings, frozen=True, tag="adamw", tag_field="name"):
    """As torch.optim.AdamW; a class centre counts its own steps."""

    lr: Positive = 1e-3
    """Learning rate, used as it is, whatever the batch."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """Shares of the running means of the gradient and of its square that are kept."""
    eps: Positive = 1e-8
    """Added to the divisor."""
    weight_decay: NonNegative = 1e-2
    """Share of the weight, times the rate, that is taken off."""


AnyRule = SgdRule | AdamWRule  # how a step is taken; `head.optim` is one


class TeacherRule(Settings, frozen=True, tag="teacher", tag_field="name"):
    """Class centres follow a teacher's embeddings of their images, and have no gradient (AdaDistill, arXiv 2407.01332)."""


RowRule = AnyRule | TeacherRule  # how class centres move

Decayed = Literal["all", "matrices"]  # matrices: not norms, biases and slopes of the backbone
Precision = Literal["fp32", "bf16", "fp16"]
Reduce = Literal["float32", "bfloat16"]


class Sgd(SgdRule, frozen=True, tag="sgd", tag_field="name"):
    """torch.optim.SGD for the backbone; and for the class centres, unless `head.optim` is another."""

    decayed: Decayed = "all"
    """matrices: no weight decay for norms, biases and slopes."""
    clip: NonNegative = 5.0
    """Largest norm of the backbone's gradient; 0: any."""
    precision: Precision = "fp32"
    """What the backbone computes in."""
    reduce_dtype: Reduce = "float32"
    """What the backbone's gradients are summed over ranks in; bfloat16: half of what is sent."""
    ema: Probability = 0.0
    """Decay of a moving average of the backbone, which then is what is evaluated and used; 0: none."""
    layer_decay: Fraction = 1.0
    """Factor of the rate from each block of the backbone to the one before it, for fine-tuning; 1: one rate for all."""


# What these have in common with Sgd is said there.
class AdamW(AdamWRule, frozen=True, tag="adamw", tag_field="name"):
    """torch.optim.AdamW for the backbone; and for the class centres, unless `head.optim` is another."""

    decayed: Decayed = "all"
    clip: NonNegative = 5.0
    precision: Precision = "fp32"
    reduce_dtype: Reduce = "float32"
    ema: Probability = 0.0
    layer_decay: Fraction = 1.0


class TorchOptimizer(Settings, frozen=True, tag="torch", tag_field="name"):
    """Any class of torch.optim, for the backbone; the class centres then want a `head.optim` of their own."""

    kind: str
    """Its name, such as NAdam, RAdam or Adafactor."""
    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    """As the class has it."""
    options: dict[str, bool | int | float | tuple[float, ...]] = field(default_factory=dict)
    """Its other arguments, by name."""
    decayed: Decayed = "all"
    clip: NonNegative = 5.0
    precision: Precision = "fp32"
    reduce_dtype: Reduce = "float32"
    ema: Probability = 0.0
    layer_decay: Fraction = 1.0


AnyOptimizer = Sgd | AdamW | TorchOptimizer


class Polynomial(Settings, frozen=True, tag="polynomial", tag_field="name"):
    """(1 - progress) ** power, down to 0 at the end."""

    warmup: Duration = 0
    """Linear, from 0 to the full rate."""
    power: Positive = 2.0
    """Exponent of what is left of the run."""


class Cosine(Settings, frozen=True, tag="cosine", tag_field="name"):
    """Half a cosine, down to 0 at the end."""

    warmup: Duration = 0
    """Linear, from 0 to the full rate."""


class Step(Settings, frozen=True, tag="step", tag_field="name"):
    """Multiplied by `factor` at each of `at`."""

    at: tuple[Duration, ...]
    """When the rate falls."""
    factor: Fraction = 0.1
    """What it is multiplied by each time."""
    warmup: Duration = 0
    """Linear, from 0 to the full rate."""


AnySchedule = Polynomial | Cosine | Step
