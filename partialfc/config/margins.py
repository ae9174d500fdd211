"""`margin:` of a recipe, a variant for each `name`."""

from typing import Annotated, Literal

from msgspec import Meta

from partialfc.config.types import Angle, Fraction, NonNegative, Scale, Settings


class Margin(Settings, frozen=True):
    scale: Scale = 64.0  # of every logit


class AngularMargin(Margin, frozen=True):
    """A margin on the angle, where the slope and the far end are questions."""

    # detached: the target logit's derivative taken as `scale`
    gradient: Literal["exact", "detached"] = "exact"
    beyond_pi: Literal["linear", "wrap"] = "linear"  # wrap: the plain cosine, which rises again


class SoftMax(Margin, frozen=True, tag="softmax", tag_field="name"):
    pass


class ArcFace(AngularMargin, frozen=True, tag="arcface", tag_field="name"):
    margin: Angle = 0.5


class CosFace(Margin, frozen=True, tag="cosface", tag_field="name"):
    margin: NonNegative = 0.35  # cosine


class Combined(AngularMargin, frozen=True, tag="combined", tag_field="name"):
    """cos(m1 t + m2) - m3."""

    m1: Annotated[float, Meta(ge=1)] = 1.0
    m2: Angle = 0.0
    m3: NonNegative = 0.0  # cosine


Order = Literal["none", "paper", "released"]  # which sample of a batch gets which draw


class ElasticArcFace(AngularMargin, frozen=True, tag="elastic_arcface", tag_field="name"):
    margin: Angle = 0.5  # mean of the draws
    sigma: NonNegative = 0.05  # radians
    order: Order = "none"


class ElasticCosFace(Margin, frozen=True, tag="elastic_cosface", tag_field="name"):
    margin: NonNegative = 0.35  # cosine, mean of the draws
    sigma: NonNegative = 0.05  # cosine
    order: Order = "none"


class AdaFace(Margin, frozen=True, tag="adaface", tag_field="name"):
    """A margin that grows with the embedding's norm; h: how much of the norms' deviation it follows."""

    margin: Angle = 0.4
    h: NonNegative = 0.333
    rate: Fraction = 0.01  # of the running mean and deviation of the norms, a step


AnyMargin = AdaFace | SoftMax | ArcFace | CosFace | Combined | ElasticArcFace | ElasticCosFace
