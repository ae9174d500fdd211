"""Settings that change as training goes on: by step or epoch, a number, or two between which it moves.

In a recipe:
    head.sample_rate: {0: 0.1, "30 epochs": 1.0}            0.1, and from epoch 30 on 1
    loss.margin: {0: [0.0, 0.5], "5 epochs": 0.5}         evenly from 0 to 0.5 over five epochs, and then 0.5
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

# a step, or text such as 26 epochs; JSON has keys of text only
_ScheduleKey = (
    Annotated[int, Meta(ge=0)]
    | Annotated[
        str, Meta(pattern=r"^(\d+|\d+(\.\d+)? epochs?)$", description="a step, or text such as 26 epochs")
    ]
)
# tuple[T, ...] is of two. It is checked below: beside a number with bounds, msgspec 0.21 reads a bound that is not there
# for a tuple of fixed length.
Scheduled: TypeAlias = T | dict[_ScheduleKey, T | tuple[T, ...]]


def value_at(setting: Scheduled[float], step: int, steps_per_epoch: int | None = None) -> float:
    """What a setting is in a step. ValueError where its stages begin at epochs and their length is not known."""
    if not isinstance(setting, Mapping):
        return setting
    starts, stages = zip(*_iter_in_steps(setting, steps_per_epoch), strict=True)
    place = sum(start <= step for start in starts) - 1
    stage = stages[place]
    if not isinstance(stage, Sequence):  # a list, too, where it is made in Python
        return stage
    first, last = stage
    begin, end = starts[place : place + 2]
    return first + (last - first) * (step - begin) / (end - begin)


def endpoint_values(setting: Scheduled[float]) -> list[float]:
    """The ends between which a setting moves; the only one of a setting that does not."""
    if not isinstance(setting, Mapping):
        return [setting]
    found: list[float] = []
    for stage in setting.values():
        found += stage if isinstance(stage, Sequence) else [stage]
    return found


def scheduled_values(
    sections: Mapping[str, msgspec.Struct], step: int, steps_per_epoch: int | None = None
) -> dict[str, float]:
    """The settings of some sections that have stages, by their keys, as they are in a step."""
    return {
        f"{section}.{name}": value_at(stages, step, steps_per_epoch)
        for section, settings in sections.items()
        for name in settings.__struct_fields__
        if isinstance(stages := getattr(settings, name), dict)
    }


def validate_schedules(section: str, config: msgspec.Struct) -> None:
    """InputError where a key of a section has stages that are out of order, or do not say all."""
    for name in config.__struct_fields__:
        stages = getattr(config, name)
        if isinstance(stages, dict) and (problem := _schedule_error(stages)):
            raise InputError(f"{section}.{name}: {short_repr(stages)}, {problem}")


def _schedule_error(schedule: dict[Any, Any]) -> str | None:
    keys = [str(key) for key in schedule]
    epochs = ["epoch" in key for key in keys]
    if not keys or keys[0] != "0":
        return "wanted 0 as the first key, the step with which it begins"
    if len(set(epochs[1:])) > 1:
        return "wanted steps or epochs, not both"
    starts = [float(key.split()[0]) for key in keys]
    if any(later <= earlier for earlier, later in pairwise(starts)):
        return "wanted keys that ascend"
    if any(isinstance(stage, Sequence) and len(stage) != 2 for stage in schedule.values()):
        return "wanted a number, or the two between which it moves"
    if isinstance(list(schedule.values())[-1], Sequence):
        return "wanted a number at the last key, at which the move before has ended"
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
                f"{text}: found stages by epochs; wanted steps, or PartialFC(..., steps_per_epoch=N)"
            )
        else:
            yield to_steps(text, steps_per_epoch), stage
