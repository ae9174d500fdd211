"""Steps that a dense optimizer would have taken on rows that were not active.

Without a gradient, a step of SGD with momentum and weight decay multiplies (weight, momentum) by a 2 x 2 matrix.
The matrix is equal for all rows. The missed steps of a row are one product of matrices, applied when the row is
active again.

Shapes:
    n: rows of this rank.
    S: active rows.
    t: steps.
    K: start steps.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.errors import InputError
from partialfc.head.buffers import copy_to_device
from partialfc.head.optimizers import NO_STEP, RowOptimizer

MAX_STEPS = 1 << 22  # of a run with `unsampled: decay`; 16 MiB of learning rates

Steps = NDArray[np.int64]


class TransitionHistory:
    """Matrices of all steps so far, float64 `[t, 2, 2]`, with the products over aligned blocks of steps.

    Level k has the product over the steps [i 2^k, (i + 1) 2^k) of each complete block i. A step appends two matrices on
    average and changes none. An interval is a product of at most 2 log2(t) blocks. Ratios of prefix products would
    overflow within 2,000 steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._identity = torch.eye(2, dtype=torch.float64, device=device)
        self._levels: list[Tensor] = []  # with spare capacity
        self.length = 0

    def append(self, matrix: Tensor) -> None:
        """Append the matrix `[2, 2]` of the next step."""
        for level in range(_trailing_ones(self.length) + 1):
            place = self.length >> level
            if level:
                even, odd = self._levels[level - 1][2 * place : 2 * place + 2]
                matrix = odd @ even
            self._room(level, place + 1)
            self._levels[level][place] = matrix
        self.length += 1

    def products(self, starts: Steps) -> Tensor:
        """Return the products of all matrices from each start step on, `[K, 2, 2]`, the latest leftmost."""
        result = self._identity.expand(len(starts), 2, 2)
        blocks = _blocks(starts, self.length)
        if not blocks:
            return result
        places = copy_to_device(np.stack([place for _, place in blocks]), result.device)
        for (level, _), place in zip(blocks, places, strict=True):
            block = self._levels[level][place.clamp_min(0)]
            result = torch.where(place[:, None, None] < 0, self._identity, block) @ result
        return result

    def fill(self, matrices: Tensor) -> None:
        """Replace the history by the matrices `[t, 2, 2]` of t steps."""
        self.length, level = len(matrices), 0
        self._levels = [matrices]
        while (count := self.length >> level + 1) > 0:
            below = self._levels[level]
            self._room(level + 1, count)
            torch.matmul(
                below[1 : 2 * count : 2], below[: 2 * count : 2], out=self._levels[level + 1][:count]
            )
            level += 1

    def _room(self, level: int, length: int) -> None:
        if level == len(self._levels):
            self._levels.append(self._identity.new_empty(0, 2, 2))
        held = self._levels[level]
        if len(held) < length:
            self._levels[level] = held.new_empty(max(2 * len(held), length, 64), 2, 2)
            self._levels[level][: len(held)] = held


class CatchUp:
    """Number of steps that each row has missed, and their effect.

    Attributes:
        last_step: Number of steps up to the last one in which a row was active, `[n]`; saved.
        learning_rates: Learning rates of all steps, `[MAX_STEPS]`, NaN for a skipped step; saved. NO_STEP marks later
            steps, and steps before the run changed to `unsampled: decay`.
    """

    def __init__(
        self, num_rows: int, optimizer: RowOptimizer, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._optimizer, self._history = optimizer, TransitionHistory(device)
        self.last_step = np.zeros(num_rows, np.int32)
        self.learning_rates = torch.full((MAX_STEPS,), NO_STEP, dtype=dtype, device=device)

    def factors(self, rows: Steps) -> Tensor:
        """Return the factors of (weight, momentum) of rows `[S]`, float64 `[S, 2, 2]`.

        Raises:
            InputError: The run has taken MAX_STEPS steps.
        """
        if self._history.length >= len(self.learning_rates):
            raise InputError(f"head.unsampled: decay supports at most {MAX_STEPS:,} steps; set it to hold")
        starts, which = np.unique(self.last_step[rows], return_inverse=True)
        products = self._history.products(starts.astype(np.int64))
        return products.index_select(0, copy_to_device(which, products.device))

    def append(self, rows: Steps, lr: Tensor, finite: Tensor) -> None:
        """Record a step in which `rows` were active; it was skipped if `finite` is False."""
        step = self._history.length
        self.learning_rates[step] = torch.where(finite, lr, torch.nan)
        self._history.append(self._optimizer.transitions(self.learning_rates[step : step + 1])[0])
        self.last_step[rows] = self._history.length

    def after_settle(self) -> None:
        """Record that all rows are up to date."""
        self.last_step[:] = self._history.length

    def after_load(self, steps: int) -> None:
        """Rebuild the history after `last_step` and `learning_rates` of `steps` steps were loaded."""
        self._history.fill(self._optimizer.transitions(self.learning_rates[:steps]))


def _trailing_ones(value: int) -> int:
    return (~value & value + 1).bit_length() - 1


def _blocks(starts: Steps, stop: int) -> list[tuple[int, Steps]]:
    """Return aligned blocks that cover [start, stop) for each start: levels, and indices `[K]` or -1, in order."""
    position, blocks = starts.copy(), []

    def take(level: int, is_aligned: NDArray[np.bool_]) -> None:
        fits = is_aligned & (position + (1 << level) <= stop)
        if fits.any():
            blocks.append((level, np.where(fits, position >> level, -1)))
            np.add(position, 1 << level, out=position, where=fits)

    top = stop.bit_length()
    for level in range(top):  # increasing block sizes
        take(level, position >> level & 1 == 1)
    for level in reversed(range(top)):  # decreasing block sizes
        take(level, position >> level << level == position)
    return blocks
