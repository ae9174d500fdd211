"""`margin:` of a recipe, a variant for each `name`."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from partialfc.config.stages import Staged, check_stages
from partialfc.config.types import Angle, Cosine, Fraction, NonNegative, Positive, Scale, Settings, unit
from partialfc.errors import InputError


class Margin(Settings, frozen=True):
    on_sphere: ClassVar[bool] = True  # embeddings and centres count by their direction alone

    scale: Staged[Scale] = 64.0
    """Factor of every logit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages("margin", self)


class AngularMargin(Margin, frozen=True):
    """A margin on the angle, where the slope and the far end are questions."""

    gradient: Literal["exact", "detached"] = "exact"
    """detached: the target logit's derivative taken as `scale`, as the widely used ArcFace code has it."""
    beyond_pi: Literal["linear", "wrap"] = "linear"
    """wrap: the plain cosine, which rises again."""


class SoftMax(Margin, frozen=True, tag="softmax", tag_field="name"):
    """cos t: normalised softmax without a margin."""


class Linear(Settings, frozen=True, tag="linear", tag_field="name"):
    """w x + b, the softmax of a linear layer: nothing is normalised, and there is no margin."""

    on_sphere: ClassVar[bool] = False


class ArcFace(AngularMargin, frozen=True, tag="arcface", tag_field="name"):
    """cos(t + margin), arXiv 1801.07698."""

    margin: Staged[Angle] = 0.5
    """Added to the angle."""


class CosFace(Margin, frozen=True, tag="cosface", tag_field="name"):
    """cos t - margin, arXiv 1801.09414."""

    margin: Staged[Cosine] = 0.35
    """Taken from the cosine."""


class Combined(AngularMargin, frozen=True, tag="combined", tag_field="name"):
    """cos(m1 t + m2) - m3, as in arXiv 1801.07698; m1 alone is SphereFace's."""

    m1: Staged[Annotated[float, Meta(ge=1)]] = 1.0
    """Factor of the angle."""
    m2: Staged[Angle] = 0.0
    """Added to the angle."""
    m3: Staged[Cosine] = 0.0
    """Taken from the cosine."""


Order = Literal["none", "paper", "released"]  # which sample of a batch gets which draw


class ElasticArcFace(AngularMargin, frozen=True, tag="elastic_arcface", tag_field="name"):
    """cos(t + e), e drawn for each sample, ElasticFace, arXiv 2109.09416."""

    margin: Staged[Angle] = 0.5
    """Mean of the draws."""
    sigma: Annotated[NonNegative, unit("radians")] = 0.05
    """Deviation of the draws."""
    order: Order = "none"
    """paper: the hardest samples get the largest draws (ElasticFace+); released: as its authors' code deals them out."""


class ElasticCosFace(Margin, frozen=True, tag="elastic_cosface", tag_field="name"):
    """cos t - e, e drawn for each sample, ElasticFace, arXiv 2109.09416."""

    margin: Staged[Cosine] = 0.35
    """Mean of the draws."""
    sigma: Cosine = 0.05
    """Deviation of the draws."""
    order: Order = "none"
    """paper: the hardest samples get the largest draws (ElasticFace+); released: as its authors' code deals them out."""


class AdaFace(Margin, frozen=True, tag="adaface", tag_field="name"):
    """A margin that grows with the embedding's norm, arXiv 2204.00964."""

    margin: Staged[Angle] = 0.4
    """Largest margin, on the angle and on the cosine."""
    h: NonNegative = 0.333
    """How much of the norms' deviation the margin follows."""
    rate: Fraction = 0.01
    """Share of a step in the running mean and deviation of the norms."""


class CurricularFace(AngularMargin, frozen=True, tag="curricularface", tag_field="name"):
    """ArcFace whose hard negatives weigh more as training goes on, arXiv 2004.00288."""

    margin: Staged[Angle] = 0.5
    """Added to the angle."""
    rate: Fraction = 0.01
    """Share of a step in the running mean of the target cosines, by which hard negatives weigh more."""


class MagFace(AngularMargin, frozen=True, tag="magface", tag_field="name"):
    """cos(t + m), m growing with the embedding's norm, which tells the image's quality, arXiv 2103.06627."""

    norms: tuple[Positive, Positive] = (10.0, 110.0)
    """Least and largest norm that counts."""
    margins: tuple[Angle, Angle] = (0.45, 0.8)
    """Margins of images of these norms."""
    weight: NonNegative = 35.0
    """Of the term that draws norms to the largest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norms[0] >= self.norms[1]:
            raise InputError(f"margin.norms: found {list(self.norms)}; wanted the smaller one first")


class UniFace(Margin, frozen=True, tag="uniface", tag_field="name"):
    """Each class by itself, softplus(b - s (cos t - margin)) and softplus(s cos t_j - b), b learnt; UniFace, ICCV 2023."""

    margin: Staged[Cosine] = 0.4
    """Taken from the cosine."""
    weight: Positive = 1.0
    """Of the negatives."""


class SphereFace2(Margin, frozen=True, tag="sphereface2", tag_field="name"):
    """Each class by itself, with a margin on either side, b learnt; SphereFace2-C, arXiv 2108.01513."""

    scale: Staged[Scale] = 40.0
    """Factor of every logit."""
    margin: Staged[Cosine] = 0.4
    """Taken from the cosine of the own class, and added to those of the others."""
    own: Annotated[float, Meta(gt=0, lt=1)] = 0.7
    """Weight of the own class; that of each other one is 1 less it."""
    power: Annotated[float, Meta(ge=1)] = 3.0
    """Of the cosines, brought to 0 to 1: the higher, the farther apart they are asked to be."""
    weight: Positive = 50.0
    """Of the whole loss, times 1 / scale."""


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
