"""What a dense optimizer would have done to a row in the steps in which it was not active.

Without a gradient, a step of SGD with momentum and weight decay is linear in (weight, momentum): a 2 x 2 matrix, the
same for every row. So a row's skipped steps are one product of matrices, found when the row is active again.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.errors import InputError
from partialfc.head.rows.optimizers import NO_STEP, RowOptimizer
from partialfc.head.scratch import on_device

MAX_STEPS = 1 << 22  # of a run that catches up: 16 MiB of learning rates

Steps = NDArray[np.int64]


class History:
    """The matrices of all steps so far, [t, 2, 2] float64 on the device, with the products of aligned blocks of them.

    Level k holds the product over steps [i 2^k, (i + 1) 2^k) for every whole block i; a step adds two matrices on
    average and changes none, and any interval is a product of at most 2 log2(t) blocks. (A ratio of prefix
    products would overflow within two thousand steps.)
    """

    def __init__(self, device: torch.device) -> None:
        self._identity = torch.eye(2, dtype=torch.float64, device=device)
        self._levels: list[Tensor] = []  # longer than what they hold
        self.length = 0

    def append(self, matrix: Tensor) -> None:
        """The matrix [2, 2] of the next step."""
        for level in range(_trailing_ones(self.length) + 1):
            place = self.length >> level
            if level:
                even, odd = self._levels[level - 1][2 * place : 2 * place + 2]
                matrix = odd @ even
            self._room(level, place + 1)
            self._levels[level][place] = matrix
        self.length += 1

    def products(self, starts: Steps) -> Tensor:
        """For each of `starts` [K]: the product [K, 2, 2] of the matrices from that step on, the latest leftmost."""
        result = self._identity.expand(len(starts), 2, 2)
        blocks = _blocks(starts, self.length)
        if not blocks:
            return result
        places = on_device(np.stack([place for _, place in blocks]), result.device)
        for (level, _), place in zip(blocks, places, strict=True):
            block = self._levels[level][place.clamp_min(0)]
            result = torch.where(place[:, None, None] < 0, self._identity, block) @ result
        return result

    def fill(self, matrices: Tensor) -> None:
        """Begin anew, with the matrices [t, 2, 2] of the first t steps."""
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
    """Which rows [n] are how many steps behind, and what that makes of them.

    What is saved has the same shapes after any number of steps: `last_step`, and the learning rates of all steps.
    """

    def __init__(
        self, num_rows: int, optimizer: RowOptimizer, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._optimizer, self._history = optimizer, History(device)
        # The number of steps with the latest that a row took part in.
        self.last_step = np.zeros(num_rows, np.int32)
        # Of all steps so far: nan where one was skipped; NO_STEP after them, and where rows held still before they were
        # to catch up.
        self.learning_rates = torch.full((MAX_STEPS,), NO_STEP, dtype=dtype, device=device)

    def factors(self, rows: Steps) -> Tensor:
        """[S, 2, 2] float64: what (weight, momentum) of each of `rows` are to be multiplied by.

        InputError after MAX_STEPS steps.
        """
        if self._history.length >= len(self.learning_rates):
            raise InputError(f"head.unsampled: decay takes runs of up to {MAX_STEPS:,} steps; wanted hold")
        starts, which = np.unique(self.last_step[rows], return_inverse=True)
        products = self._history.products(starts.astype(np.int64))
        return products.index_select(0, on_device(which, products.device))

    def append(self, rows: Steps, lr: Tensor, finite: Tensor) -> None:
        """Note a step at the learning rate `lr`, skipped where `finite` is false, in which `rows` were active."""
        step = self._history.length
        self.learning_rates[step] = torch.where(finite, lr, torch.nan)
        self._history.append(self._optimizer.transitions(self.learning_rates[step : step + 1])[0])
        self.last_step[rows] = self._history.length

    def settled(self) -> None:
        """Take in that all rows are up to date."""
        self.last_step[:] = self._history.length

    def loaded(self, steps: int) -> None:
        """Take in that `last_step` and `learning_rates` were filled with those of `steps` steps."""
        self._history.fill(self._optimizer.transitions(self.learning_rates[:steps]))


def _trailing_ones(number: int) -> int:
    return (~number & number + 1).bit_length() - 1


def _blocks(starts: Steps, stop: int) -> list[tuple[int, Steps]]:
    """Aligned blocks (level, [K] their places, -1: none), in order, that together cover [start, stop) of each start."""
    position, blocks = starts.copy(), []

    def take(level: int, wanted: NDArray[np.bool_]) -> None:
        wanted = wanted & (position + (1 << level) <= stop)
        if wanted.any():
            blocks.append((level, np.where(wanted, position >> level, -1)))
            np.add(position, 1 << level, out=position, where=wanted)

    top = stop.bit_length()
    for level in range(top):  # up to ever larger blocks, as far as `stop` allows
        take(level, position >> level & 1 == 1)
    for level in reversed(range(top)):  # and down again
        take(level, position >> level << level == position)
    return blocks
