"""Types of settings, and the base class of all sections."""

import functools
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from partialfc.conversion import describe_type
from partialfc.errors import InputError

IGNORE_LABEL = -1  # label of ignored images: padding or unknown identity


def with_unit(name: str) -> Meta:
    """Return an annotation with the unit of a number, for the reference."""
    return Meta(extra_json_schema={"unit": name})


NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
FractionBelowOne = Annotated[float, Meta(ge=0, lt=1)]
Probability = Annotated[float, Meta(ge=0, le=1)]
LogitScaleFactor = Annotated[float, Meta(gt=0, le=300)]  # exp(-2 * 300) is representable as a double
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
# a Duration, or a TimeSpan by the clock of rank 0
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
    """Section of a recipe: immutable, keyword-only, without undeclared keys.

    Objects made in Python are validated like recipes.

    Raises:
        InputError: If a value is invalid.
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
    """Return the type of each key."""
    return [(field.name, field.type) for field in msgspec.structs.fields(settings)]


def _validation_message(type_: Any, error: msgspec.ValidationError) -> str:
    if get_origin(type_) is Literal:
        return f"expected one of {', '.join(map(str, get_args(type_)))}"
    if expected := describe_type(msgspec.inspect.type_info(type_)):
        return f"expected {expected}"
    problem = str(error).replace("`", "")
    return problem[0].lower() + problem[1:]
