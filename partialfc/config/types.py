"""The kinds of values that settings have, and what every section of a recipe is."""

import functools
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from partialfc.conversion import description
from partialfc.errors import InputError

IGNORE = -1  # the label of an image that counts for nothing: padding, or of unknown identity


def unit(name: str) -> Meta:
    """Says what a number counts, for who asks what a key means."""
    return Meta(extra_json_schema={"unit": name})


Natural = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
Probability = Annotated[float, Meta(ge=0, lt=1)]
Chance = Annotated[float, Meta(ge=0, le=1)]
Scale = Annotated[float, Meta(gt=0, le=300)]  # exp(-2 * 300) still is a double
Angle = Annotated[float, Meta(ge=0, le=3.14), unit("radians")]
Cosine = Annotated[NonNegative, unit("cosine")]
Pixels = Annotated[int, unit("pixels")]
Seed = Annotated[int, Meta(ge=0, lt=1 << 62)]
Duration = (
    Natural
    | Annotated[
        str,
        Meta(pattern=r"^\d+(\.\d+)? epochs?$", description="a number of steps, or text such as 26 epochs"),
    ]
)
Time = Annotated[
    str,
    Meta(
        pattern=r"^(?!0+(\.0+)? )\d+(\.\d+)? (second|minute|hour)s?$",
        description="a time above 0, such as 15 minutes",
    ),
]
# as a Duration, or a Time by the first rank's clock
Interval = (
    Natural
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
        for name, kind in _kinds(type(self)):
            value = getattr(self, name)
            try:
                msgspec.convert(value, kind)
            except msgspec.ValidationError as error:
                problem = _problem(kind, error)
            else:
                if all(math.isfinite(it) for it in _floats(value)):
                    continue
                problem = "expected a finite number"
            raise InputError(f"{type(self).__name__}.{name}: {problem}; found {value!r}")


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for it in value.values() if isinstance(value, dict) else value:
            yield from _floats(it)


@functools.cache
def _kinds(settings: type[Settings]) -> list[tuple[str, Any]]:
    """The type of each key."""
    return [(field.name, field.type) for field in msgspec.structs.fields(settings)]


def _problem(kind: Any, error: msgspec.ValidationError) -> str:
    if get_origin(kind) is Literal:
        return f"wanted one of {', '.join(map(str, get_args(kind)))}"
    if wanted := description(msgspec.inspect.type_info(kind)):
        return f"wanted {wanted}"
    problem = str(error).replace("`", "")
    return problem[0].lower() + problem[1:]
