"""`margin:` of a recipe, a variant for each `name`."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from partialfc.config.scheduled import Staged, check_stages
from partialfc.config.types import Angle, Cosine, Fraction, NonNegative, Positive, Scale, Settings, unit
from partialfc.errors import InputError


class Margin(Settings, frozen=True):
    on_sphere: ClassVar[bool] = True  # normalize embeddings and centers

    scale: Staged[Scale] = 64.0
    """Factor of all logits, s."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages("loss", self)


class AngularMargin(Margin, frozen=True):
    """Margin on the angle."""

    gradient: Literal["exact", "detached"] = "exact"
    """Derivative of the target logit by the cosine. detached: `scale`, as in the widely used ArcFace code."""
    beyond_pi: Literal["linear", "wrap"] = "linear"
    """Target logit for angles beyond pi. linear: monotone continuation; wrap: plain cosine, which increases again."""


class SoftMax(Margin, frozen=True, tag="softmax", tag_field="name"):
    """cos t: softmax of normalized embeddings and centers, without a margin."""


class Linear(Settings, frozen=True, tag="linear", tag_field="name"):
    """w x + b: softmax of a linear layer, without normalization and margin."""

    on_sphere: ClassVar[bool] = False


class ArcFace(AngularMargin, frozen=True, tag="arcface", tag_field="name"):
    """cos(t + margin), arXiv 1801.07698."""

    margin: Staged[Angle] = 0.5
    """Margin added to the angle."""


class CosFace(Margin, frozen=True, tag="cosface", tag_field="name"):
    """cos t - margin, arXiv 1801.09414."""

    margin: Staged[Cosine] = 0.35
    """Margin subtracted from the cosine."""


class Combined(AngularMargin, frozen=True, tag="combined", tag_field="name"):
    """cos(m1 t + m2) - m3, arXiv 1801.07698; m1 alone is SphereFace."""

    m1: Staged[Annotated[float, Meta(ge=1)]] = 1.0
    """Factor of the angle."""
    m2: Staged[Angle] = 0.0
    """Margin added to the angle."""
    m3: Staged[Cosine] = 0.0
    """Margin subtracted from the cosine."""


Order = Literal["none", "paper", "released"]  # which sample of a batch gets which draw


class ElasticArcFace(AngularMargin, frozen=True, tag="elastic_arcface", tag_field="name"):
    """cos(t + e) with a random margin e for each image, ElasticFace, arXiv 2109.09416."""

    margin: Staged[Angle] = 0.5
    """Mean of the random margins."""
    sigma: Annotated[NonNegative, unit("radians")] = 0.05
    """Standard deviation of the random margins."""
    order: Order = "none"
    """Assignment of the margins. paper: the hardest images get the largest margins (ElasticFace+); released: as in the authors' code."""


class ElasticCosFace(Margin, frozen=True, tag="elastic_cosface", tag_field="name"):
    """cos t - e with a random margin e for each image, ElasticFace, arXiv 2109.09416."""

    margin: Staged[Cosine] = 0.35
    """Mean of the random margins."""
    sigma: Cosine = 0.05
    """Standard deviation of the random margins."""
    order: Order = "none"
    """Assignment of the margins. paper: the hardest images get the largest margins (ElasticFace+); released: as in the authors' code."""


class AdaFace(Margin, frozen=True, tag="adaface", tag_field="name"):
    """Margin that depends on the norm of the embedding, arXiv 2204.00964."""

    margin: Staged[Angle] = 0.4
    """Largest margin of angle and cosine."""
    h: NonNegative = 0.333
    """Factor of the normalized norm, h in the paper."""
    ema_rate: Fraction = 0.01
    """Weight of a step in the running mean and deviation of the norms."""


class CurricularFace(AngularMargin, frozen=True, tag="curricularface", tag_field="name"):
    """ArcFace with weights of hard negatives that grow during training, arXiv 2004.00288."""

    margin: Staged[Angle] = 0.5
    """Margin added to the angle."""
    ema_rate: Fraction = 0.01
    """Weight of a step in the running mean of the target cosines, which determines the weight of hard negatives."""


class MagFace(AngularMargin, frozen=True, tag="magface", tag_field="name"):
    """cos(t + m) with a margin m that grows with the norm of the embedding, arXiv 2103.06627."""

    norm_range: tuple[Positive, Positive] = (10.0, 110.0)
    """Smallest and largest norm; others are clipped."""
    margin_range: tuple[Angle, Angle] = (0.45, 0.8)
    """Margins at the smallest and at the largest norm."""
    norm_penalty_weight: NonNegative = 35.0
    """Weight of the term that increases the norms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_range[0] >= self.norm_range[1]:
            raise InputError(f"loss.norm_range: found {list(self.norm_range)}; wanted the smaller one first")


class UniFace(Margin, frozen=True, tag="uniface", tag_field="name"):
    """softplus(b - s (cos t - margin)) and softplus(s cos t_j - b) of each negative, with a learned b; UniFace, ICCV 2023."""

    margin: Staged[Cosine] = 0.4
    """Margin subtracted from the cosine."""
    negative_weight: Positive = 1.0
    """Weight of the negatives."""


class SphereFace2(Margin, frozen=True, tag="sphereface2", tag_field="name"):
    """Binary classification for each class, with a margin on both sides of a learned b; SphereFace2-C, arXiv 2108.01513."""

    scale: Staged[Scale] = 40.0
    """Factor of all logits, s."""
    margin: Staged[Cosine] = 0.4
    """Margin subtracted from the target cosine and added to those of negatives."""
    positive_weight: Annotated[float, Meta(gt=0, lt=1)] = 0.7
    """Weight of the target; each negative has 1 - positive_weight."""
    power: Annotated[float, Meta(ge=1)] = 3.0
    """Exponent of the cosines, which are mapped to 0 to 1; larger values demand larger differences."""
    loss_weight: Positive = 50.0
    """Weight of the loss, times 1 / scale."""


AnyMargin = (
    AdaFace
    | ArcFace
    | Combined
    | CosFace
    | CurricularFace
    | ElasticArcFace
    | ElasticCosFace
    | Linear
    | MagFace
    | SoftMax
    | SphereFace2
    | UniFace
)
