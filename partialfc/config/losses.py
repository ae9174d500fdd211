"""Section `loss:` of a recipe, one variant per `name`."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from partialfc.config.scheduled import Scheduled, validate_schedules
from partialfc.config.types import (
    CosineMargin,
    Fraction,
    LogitScaleFactor,
    NonNegativeFloat,
    PositiveFloat,
    Radians,
    Settings,
    with_unit,
)
from partialfc.errors import InputError


class ScaledLoss(Settings, frozen=True):
    """Settings of a loss with scaled logits."""

    on_sphere: ClassVar[bool] = True  # embeddings and centers are L2-normalized

    scale: Scheduled[LogitScaleFactor] = 64.0
    """Factor of all logits, s."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validate_schedules("loss", self)


class AngularLoss(ScaledLoss, frozen=True):
    """Margin on the angle."""

    gradient: Literal["exact", "detached"] = "exact"
    """Derivative of the target logit by the cosine. detached: `scale`, as in the widely used ArcFace code."""
    beyond_pi: Literal["linear", "wrap"] = "linear"
    """Target logit for angles beyond pi. linear: monotone continuation; wrap: plain cosine, which increases again."""


class CosineSoftmax(ScaledLoss, frozen=True, tag="softmax", tag_field="name"):
    """cos t: softmax of normalized embeddings and centers, without a margin."""


class LinearSoftmax(Settings, frozen=True, tag="linear", tag_field="name"):
    """w x + b: softmax of a linear layer, without normalization and margin."""

    on_sphere: ClassVar[bool] = False


class ArcFace(AngularLoss, frozen=True, tag="arcface", tag_field="name"):
    """cos(t + margin), arXiv 1801.07698."""

    margin: Scheduled[Radians] = 0.5
    """Margin added to the angle."""


class CosFace(ScaledLoss, frozen=True, tag="cosface", tag_field="name"):
    """cos t - margin, arXiv 1801.09414."""

    margin: Scheduled[CosineMargin] = 0.35
    """Margin subtracted from the cosine."""


class CombinedMargin(AngularLoss, frozen=True, tag="combined", tag_field="name"):
    """cos(m1 t + m2) - m3, arXiv 1801.07698; m1 alone is SphereFace."""

    m1: Scheduled[Annotated[float, Meta(ge=1)]] = 1.0
    """Factor of the angle."""
    m2: Scheduled[Radians] = 0.0
    """Margin added to the angle."""
    m3: Scheduled[CosineMargin] = 0.0
    """Margin subtracted from the cosine."""


# Assignment of the random margins to the samples of a batch.
MarginOrder = Literal["none", "paper", "released"]


class ElasticArcFace(AngularLoss, frozen=True, tag="elastic_arcface", tag_field="name"):
    """cos(t + e) with a random margin e for each image, ElasticFace, arXiv 2109.09416."""

    margin: Scheduled[Radians] = 0.5
    """Mean of the random margins."""
    sigma: Annotated[NonNegativeFloat, with_unit("radians")] = 0.05
    """Standard deviation of the random margins."""
    order: MarginOrder = "none"
    """Assignment of the margins. paper: the hardest images get the largest margins (ElasticFace+); released: as
    in the authors' code."""


class ElasticCosFace(ScaledLoss, frozen=True, tag="elastic_cosface", tag_field="name"):
    """cos t - e with a random margin e for each image, ElasticFace, arXiv 2109.09416."""

    margin: Scheduled[CosineMargin] = 0.35
    """Mean of the random margins."""
    sigma: CosineMargin = 0.05
    """Standard deviation of the random margins."""
    order: MarginOrder = "none"
    """Assignment of the margins. paper: the hardest images get the largest margins (ElasticFace+); released: as
    in the authors' code."""


class AdaFace(ScaledLoss, frozen=True, tag="adaface", tag_field="name"):
    """Margin that depends on the norm of the embedding, arXiv 2204.00964."""

    margin: Scheduled[Radians] = 0.4
    """Largest margin of angle and cosine."""
    h: NonNegativeFloat = 0.333
    """Factor of the normalized norm, h in the paper."""
    ema_rate: Fraction = 0.01
    """Weight of a step in the running mean and deviation of the norms."""


class CurricularFace(AngularLoss, frozen=True, tag="curricularface", tag_field="name"):
    """ArcFace with weights of hard negatives that grow during training, arXiv 2004.00288."""

    margin: Scheduled[Radians] = 0.5
    """Margin added to the angle."""
    ema_rate: Fraction = 0.01
    """Weight of a step in the running mean of the target cosines, which determines the weight of hard negatives."""


class MagFace(AngularLoss, frozen=True, tag="magface", tag_field="name"):
    """cos(t + m) with a margin m that grows with the norm of the embedding, arXiv 2103.06627."""

    norm_range: tuple[PositiveFloat, PositiveFloat] = (10.0, 110.0)
    """Smallest and largest norm; others are clipped."""
    margin_range: tuple[Radians, Radians] = (0.45, 0.8)
    """Margins at the smallest and at the largest norm."""
    norm_penalty_weight: NonNegativeFloat = 35.0
    """Weight of the term that increases the norms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_range[0] >= self.norm_range[1]:
            raise InputError(f"loss.norm_range: found {list(self.norm_range)}; expected [smallest, largest]")


class UniFace(ScaledLoss, frozen=True, tag="uniface", tag_field="name"):
    """softplus(b - s (cos t - margin)) + softplus(s cos t_j - b) per negative, with a learned b; UniFace, ICCV 2023."""

    margin: Scheduled[CosineMargin] = 0.4
    """Margin subtracted from the cosine."""
    negative_weight: PositiveFloat = 1.0
    """Weight of the negatives."""


class SphereFace2(ScaledLoss, frozen=True, tag="sphereface2", tag_field="name"):
    """Binary classification per class, with a margin on both sides of a learned b; SphereFace2-C, arXiv 2108.01513."""

    scale: Scheduled[LogitScaleFactor] = 40.0
    """Factor of all logits, s."""
    margin: Scheduled[CosineMargin] = 0.4
    """Margin subtracted from the target cosine and added to those of negatives."""
    positive_weight: Annotated[float, Meta(gt=0, lt=1)] = 0.7
    """Weight of the target; each negative has 1 - positive_weight."""
    power: Annotated[float, Meta(ge=1)] = 3.0
    """Exponent of the cosines, which are mapped to 0 to 1; larger values demand larger differences."""
    loss_weight: PositiveFloat = 50.0
    """Weight of the loss, times 1 / scale."""


AnyLoss = (
    AdaFace
    | ArcFace
    | CombinedMargin
    | CosFace
    | CurricularFace
    | ElasticArcFace
    | ElasticCosFace
    | LinearSoftmax
    | MagFace
    | CosineSoftmax
    | SphereFace2
    | UniFace
)
