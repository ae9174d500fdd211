"""The kinds of values that settings have, and what every section of a recipe is."""

from typing import Annotated

from msgspec import Meta, Struct

Natural = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
Probability = Annotated[float, Meta(ge=0, lt=1)]
Chance = Annotated[float, Meta(ge=0, le=1)]
Scale = Annotated[float, Meta(gt=0, le=300)]  # exp(-2 * 300) still is a double
Angle = Annotated[float, Meta(ge=0, le=3.14)]  # radians
Seed = Annotated[int, Meta(ge=0, lt=1 << 62)]
Duration = Natural | Annotated[str, Meta(pattern=r"^\d+(\.\d+)? epochs?$")]  # steps, or "26 epochs"


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of a recipe: immutable, keyword-only, and a key it does not declare is an error."""
