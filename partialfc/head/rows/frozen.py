"""Rows as they were at one moment, for a reader that goes through them while steps change them, without a copy of all."""

import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class FrozenRows:
    """A tensor [n, D] of the host as it was when this was made. Who writes rows says so before; those that were not read
    yet are kept aside: no more memory than the steps write meanwhile.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.dtype, self.shape = tensor.dtype, tensor.shape
        self.closed = False
        self._lock = threading.Lock()
        self._read_up_to = 0
        self._is_kept = np.zeros(len(tensor), bool)
        self._kept: list[tuple[NDArray[np.int64], Tensor]] = []  # ascending rows, and what they were

    def before_write(self, rows: NDArray[np.int64]) -> None:
        """These rows [S], ascending, are about to be written. From any thread."""
        with self._lock:
            if self.closed:
                return
            new = rows[np.searchsorted(rows, self._read_up_to) :]
            new = new[~self._is_kept[new]]
            if len(new):
                self._is_kept[new] = True
                self._kept.append((new, self._tensor.index_select(0, torch.from_numpy(new))))

    def read(self, start: int, stop: int) -> Tensor:
        """The rows from `start` to before `stop`, a copy; the next call begins at `stop`. From any thread."""
        with self._lock:
            assert start == self._read_up_to and not self.closed
            self._read_up_to = stop
            rows = self._tensor[start:stop].clone()
            for kept, values in self._kept:
                first, last = np.searchsorted(kept, [start, stop])
                rows[torch.from_numpy(kept[first:last] - start)] = values[first:last]
        return rows

    def close(self) -> None:
        """Nobody reads any more. From any thread."""
        with self._lock:
            self.closed = True
            self._kept.clear()
