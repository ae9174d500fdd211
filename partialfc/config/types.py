"""The kinds of values that settings have, and what every section of a recipe is."""

import functools
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from partialfc.conversion import describe_type
from partialfc.errors import InputError

IGNORE_LABEL = -1  # the label of an image that counts for nothing: padding, or of unknown identity


def with_unit(name: str) -> Meta:
    """Says what a number counts, for who asks what a key means."""
    return Meta(extra_json_schema={"unit": name})


NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
FractionBelowOne = Annotated[float, Meta(ge=0, lt=1)]
Probability = Annotated[float, Meta(ge=0, le=1)]
LogitScaleFactor = Annotated[float, Meta(gt=0, le=300)]  # exp(-2 * 300) still is a double
Radians = Annotated[float, Meta(ge=0, le=3.14), with_unit("radians")]
CosineMargin = Annotated[NonNegativeFloat, with_unit("cosine")]
PixelCount = Annotated[int, with_unit("pixels")]
Seed = Annotated[int, Meta(ge=0, lt=1 << 62)]
Duration = (
    NonNegativeInt
    | Annotated[
        str,
        Meta(pattern=r"^\d+(\.\d+)? epochs?$", description="a number of steps, or text such as 26 epochs"),
    ]
)
TimeSpan = Annotated[
    str,
    Meta(
        pattern=r"^(?!0+(\.0+)? )\d+(\.\d+)? (second|minute|hour)s?$",
        description="a time above 0, such as 15 minutes",
    ),
]
# as a Duration, or a Time by the first rank's clock
Interval = (
    NonNegativeInt
    | Annotated[
        str,
        Meta(
            pattern=r"^(?!0+(\.0+)? )\d+(\.\d+)? (epoch|second|minute|hour)s?$",
            description="a number of steps, or text such as 26 epochs or 15 minutes",
        ),
    ]
)
SetScore = Annotated[str, Meta(pattern="^[^/]+/[^/]+$", description="SET/score, such as lfw/accuracy")]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of a recipe: immutable, keyword-only, and a key it does not declare is an error.

    One that is made in Python is checked as one of a recipe is: an InputError says what was found and what is wanted.
    """

    def __post_init__(self) -> None:
        for name, kind in _field_types(type(self)):
            value = getattr(self, name)
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError as error:
                problem = _validation_message(kind, error)
            else:
                if all(math.isfinite(it) for it in _iter_floats(value)):
                    continue
                problem = "expected a finite number"
            raise InputError(f"{type(self).__name__}.{name}: {problem}; found {value!r}")


def _iter_floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for it in value.values() if isinstance(value, dict) else value:
            yield from _iter_floats(it)


@functools.cache
def _field_types(settings: type[Settings]) -> list[tuple[str, Any]]:
    """The type of each key."""
    return [(field.name, field.type) for field in msgspec.structs.fields(settings)]


def _validation_message(type_: Any, error: msgspec.ValidationError) -> str:
    if get_origin(type_) is Literal:
        return f"wanted one of {', '.join(map(str, get_args(type_)))}"
    if wanted := describe_type(msgspec.inspect.type_info(type_)):
        return f"wanted {wanted}"
    problem = str(error).replace("`", "")
    return problem[0].lower() + problem[1:]
