"""Scheduled settings: a constant, or a value (or linear ramp) per step or epoch.

In a recipe:
    head.sample_rate: {0: 0.1, "30 epochs": 1.0}            0.1, then 1 from epoch 30 on
    loss.margin: {0: [0.0, 0.5], "5 epochs": 0.5}         from 0 to 0.5 over five epochs, then 0.5
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from partialfc.config.durations import to_steps
from partialfc.conversion import short_repr
from partialfc.errors import InputError

T = TypeVar("T")

# a step, or text such as 26 epochs; JSON has text keys only
_ScheduleKey = (
    Annotated[int, Meta(ge=0)]
    | Annotated[
        str, Meta(pattern=r"^(\d+|\d+(\.\d+)? epochs?)$", description="a step, or text such as 26 epochs")
    ]
)
# tuple[T, ...] with two entries, validated below: next to a bounded number, msgspec 0.21 reads a nonexistent
# bound for a tuple of fixed length.
Scheduled: TypeAlias = T | dict[_ScheduleKey, T | tuple[T, ...]]


def value_at(setting: Scheduled[float], step: int, steps_per_epoch: int | None = None) -> float:
    """Return the value of a setting in a step.

    Raises:
        ValueError: If its schedule uses epochs and their length is unknown.
    """
    if not isinstance(setting, Mapping):
        return setting
    starts, stages = zip(*_iter_in_steps(setting, steps_per_epoch), strict=True)
    place = sum(start <= step for start in starts) - 1
    stage = stages[place]
    if not isinstance(stage, Sequence):  # in Python it may also be a list
        return stage
    first, last = stage
    begin, end = starts[place : place + 2]
    return first + (last - first) * (step - begin) / (end - begin)


def endpoint_values(setting: Scheduled[float]) -> list[float]:
    """Return the values between which a setting changes; a single one if it is constant."""
    if not isinstance(setting, Mapping):
        return [setting]
    found: list[float] = []
    for stage in setting.values():
        found += stage if isinstance(stage, Sequence) else [stage]
    return found


def scheduled_values(
    sections: Mapping[str, msgspec.Struct], step: int, steps_per_epoch: int | None = None
) -> dict[str, float]:
    """Return the values of all scheduled settings of some sections in a step, by key."""
    return {
        f"{section}.{name}": value_at(stages, step, steps_per_epoch)
        for section, settings in sections.items()
        for name in settings.__struct_fields__
        if isinstance(stages := getattr(settings, name), dict)
    }


def validate_schedules(section: str, config: msgspec.Struct) -> None:
    """Raise InputError if a schedule of the section is unordered or incomplete."""
    for name in config.__struct_fields__:
        stages = getattr(config, name)
        if isinstance(stages, dict) and (problem := _schedule_error(stages)):
            raise InputError(f"{section}.{name}: {short_repr(stages)}, {problem}")


def _schedule_error(schedule: dict[Any, Any]) -> str | None:
    keys = [str(key) for key in schedule]
    epochs = ["epoch" in key for key in keys]
    if not keys or keys[0] != "0":
        return "expected 0 as the first key"
    if len(set(epochs[1:])) > 1:
        return "expected steps or epochs, not both"
    starts = [float(key.split()[0]) for key in keys]
    if any(later <= earlier for earlier, later in pairwise(starts)):
        return "expected ascending keys"
    if any(isinstance(stage, Sequence) and len(stage) != 2 for stage in schedule.values()):
        return "expected a number, or two for a ramp"
    if isinstance(list(schedule.values())[-1], Sequence):
        return "expected a number at the last key, where the last ramp ends"
    return None


def _iter_in_steps(
    schedule: Mapping[Any, float | tuple[float, ...]], steps_per_epoch: int | None
) -> Iterator[tuple[int, float | tuple[float, ...]]]:
    for key, stage in schedule.items():
        text = str(key)
        if text.isdecimal():
            yield int(text), stage
        elif steps_per_epoch is None:
            raise ValueError(
                f"{text}: schedule in epochs; expected steps, or PartialFC(..., steps_per_epoch=N)"
            )
        else:
            yield to_steps(text, steps_per_epoch), stage
