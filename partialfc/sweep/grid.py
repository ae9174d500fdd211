"""Grid of a sweep: every combination of the values of its settings."""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from partialfc.config import load_config
from partialfc.errors import InputError

SEED = "seed"  # the setting over which scores are averaged
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MAX_NAME_LENGTH = 120  # characters of a folder name


@dataclass(frozen=True)
class Point:
    """One run: its values of the varying settings, in the order of the call."""

    settings: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """Name of its folder; independent of the rest of the grid."""
        text = ",".join(f"{key}={value}" for key, value in self.settings) or "run"
        name = re.sub(r"[^\w.,=+-]", "_", text)
        if len(name) <= _MAX_NAME_LENGTH and name == text:
            return name
        return f"{name[:_MAX_NAME_LENGTH]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def overrides(self) -> list[str]:
        """Return the overrides as `partialfc train` takes them."""
        return [f"{key}={value}" for key, value in self.settings]

    def settings_without_seed(self) -> tuple[tuple[str, str], ...]:
        """Return the settings without the seed; runs that differ in the seed only form one row."""
        return tuple(it for it in self.settings if it[0] != SEED)


@dataclass(frozen=True)
class Grid:
    """A recipe, fixed settings, and the runs of the sweep."""

    recipe: str
    fixed: tuple[str, ...]
    points: tuple[Point, ...]

    def overrides(self, point: Point) -> list[str]:
        """Return the overrides of one run."""
        return [*self.fixed, *point.overrides()]


def parse_grid(recipe: str, arguments: Sequence[str]) -> Grid:
    """Parse the arguments `key=value` (fixed), `key=a,b,c` and `key=0..4` (integers, both ends included).

    A comma within brackets or quotes is part of a value.

    Returns:
        The grid.

    Raises:
        InputError: If the recipe of any run is invalid.
    """
    fixed, axes = [], []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise InputError(f"{argument!r}: expected section.key=value, or section.key=one,other")
        if key == "output":
            raise InputError(f"{argument}: each run has its own folder; pass --out FOLDER")
        values = parse_values(text)
        if len(values) > 1:
            axes.append([(key, value) for value in values])
        else:
            fixed.append(f"{key}={values[0]}")
    keys = [it.partition("=")[0] for it in fixed] + [axis[0][0] for axis in axes]
    if repeated := next((key for key in keys if keys.count(key) > 1), None):
        raise InputError(f"{repeated} is given twice; list all its values in one argument")
    grid = Grid(recipe, tuple(fixed), tuple(Point(it) for it in itertools.product(*axes)))
    for point in grid.points:
        load_config(recipe, grid.overrides(point))
    return grid


def parse_values(text: str) -> list[str]:
    """Return the values that a text lists."""
    if found := _RANGE.fullmatch(text):
        first, last = map(int, found.groups())
        if first > last:
            raise InputError(f"{text}: expected the smaller number first")
        return [str(it) for it in range(first, last + 1)]
    values, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        else:
            depth += (sign in "[{(") - (sign in "]})")
        if sign == "," and depth == 0 and not quote:
            values.append("")
        else:
            values[-1] += sign
    if len(values) > 1 and "" in values:
        raise InputError(f"{text!r}: a value is empty")
    return values
