"""What a recipe says in steps, epochs or times, as numbers."""

from partialfc.config.types import Duration, Interval

_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


def to_steps(duration: Duration, steps_per_epoch: int) -> int:
    """A duration of a recipe as a number of steps; epochs are rounded to the nearest step."""
    if isinstance(duration, int):
        return duration
    return round(float(duration.split()[0]) * steps_per_epoch)


def to_seconds(interval: Interval) -> float | None:
    """An interval of a recipe that is said in time, in seconds; None where it is steps or epochs."""
    if isinstance(interval, int) or "epoch" in interval:
        return None
    return parse_seconds(interval)


def parse_seconds(text: str) -> float:
    """A time of a recipe, such as `15 minutes`, in seconds."""
    number, unit = text.split()
    return float(number) * _SECONDS[unit.removesuffix("s")]
