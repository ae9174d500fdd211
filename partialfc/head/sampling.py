"""The classes a step works on: a stratified draw that is the same set for every number of ranks."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.runtime import randomness

IGNORE = -1  # the label of an image that counts for nothing: padding, or of unknown identity


@dataclass(frozen=True)
class Work:
    """What one step of the head works on, on this rank; made on the host, used on the device.

    B images in the global batch, N of them with a class of this rank, S classes at work on this rank.
    """

    rows: Tensor | None  # [S] int64 rows of this rank's shard, ascending; None: all
    host_rows: NDArray[np.int64] | None  # the same, always on the host
    here: Tensor  # [N] int64 positions in the global batch of the images whose class this rank owns, by class
    columns: Tensor  # [N] int64 where their classes stand among the rows at work, ascending
    host_columns: NDArray[np.int64]  # [N] the same, always on the host
    valid: Tensor  # [B] bool: not ignored
    positions: Tensor  # [number of valid images] int64: where `valid` is true
    drawn: Tensor | None  # [B] elastic margins
    lifted: Tensor | None  # [S] added to the logits of a column, for all images but those of its class
    noise: Tensor | None  # [S] int32, for the rounding of rows to bfloat16

    def images_of(self, start: int, stop: int) -> slice:
        """Of `here` and `columns`: what falls on the columns from `start` to before `stop`."""
        first, last = np.searchsorted(self.host_columns, (start, stop)).tolist()
        return slice(first, last)

    def to(self, device: torch.device) -> Self:
        """The same on `device`, which the host does not wait for."""
        if device.type == "cpu":
            return self
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved: dict[str, Any] = {
            name: it.pin_memory().to(device, non_blocking=True) if isinstance(it, Tensor) else it
            for name, it in fields.items()
        }
        return type(self)(**moved)


def num_strata(num_classes: int, rate: float) -> int:
    """How many classes a step draws, all ranks together: max(1, round(rate x classes))."""
    return max(1, round(rate * num_classes))


def sampled(num_classes: int, rate: float, seed: int, step: int, owned: range) -> NDArray[np.int64]:
    """Those of the step's sampled classes that lie in `owned`: int64, ascending, without repeats.

    The circle of classes, turned by a random amount, is cut into `num_strata` nearly equal arcs, and each
    arc gives one class. Every class is drawn with the same probability. The set is a pure function of (seed,
    step); cost and memory are those of the owned part alone.
    """
    count = num_strata(num_classes, rate)
    key = randomness.key(seed, "sample", step)
    turn = int(randomness.below(key, np.array([count]), np.array([num_classes]))[0])
    pieces = [
        (_in_arc(num_classes, count, key, start, stop) + turn) % num_classes
        for start, stop in _unturned(owned, turn, num_classes)
    ]
    return np.sort(np.concatenate(pieces)) if pieces else np.empty(0, np.int64)


def _unturned(owned: range, turn: int, num_classes: int) -> list[tuple[int, int]]:
    """The positions [start, stop) on the unturned circle that `owned` covers: at most two intervals."""
    if not owned:
        return []
    start = (owned.start - turn) % num_classes
    stop = start + len(owned)
    if stop <= num_classes:
        return [(start, stop)]
    return [(start, num_classes), (0, stop - num_classes)]


def _in_arc(num_classes: int, count: int, key: int, start: int, stop: int) -> NDArray[np.int64]:
    """The draws that fall on positions [start, stop); arc k is [k C // n, (k + 1) C // n)."""
    first, last = (((position + 1) * count - 1) // num_classes for position in (start, stop - 1))
    arcs = np.arange(first, last + 1)
    begins = arcs * num_classes // count
    widths = (arcs + 1) * num_classes // count - begins
    drawn = begins + randomness.below(key, arcs, widths)
    return drawn[(drawn >= start) & (drawn < stop)]
