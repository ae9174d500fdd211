"""Conversion of steps, epochs and time spans of a recipe to numbers."""

from partialfc.config.types import Duration, Interval

_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


def to_steps(duration: Duration, steps_per_epoch: int) -> int:
    """Return a duration of a recipe in steps; epochs are rounded to the nearest step."""
    if isinstance(duration, int):
        return duration
    return round(float(duration.split()[0]) * steps_per_epoch)


def to_seconds(interval: Interval) -> float | None:
    """Return an interval of a recipe in seconds; None if it is in steps or epochs."""
    if isinstance(interval, int) or "epoch" in interval:
        return None
    return parse_seconds(interval)


def parse_seconds(text: str) -> float:
    """Return a time span of a recipe, such as `15 minutes`, in seconds."""
    number, unit = text.split()
    return float(number) * _SECONDS[unit.removesuffix("s")]
