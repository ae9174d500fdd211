"""Which of a rank's classes batches have held so far."""

import numpy as np
from numpy.typing import NDArray


class SeenClasses:
    """Of n classes; `flags` is to be saved, and written into."""

    def __init__(self, classes: int) -> None:
        self.flags = np.zeros(classes, np.uint8)  # 1: was in a batch

    def add(self, rows: NDArray[np.int64]) -> None:
        """A batch with images of these classes, by their rows, is through."""
        self.flags[rows] = 1

    def never(self, rows: NDArray[np.int64]) -> int:
        """How many were in no batch, the one under way with images of these included."""
        new = np.unique(rows[self.flags[rows] == 0])
        return len(self.flags) - int(np.count_nonzero(self.flags)) - len(new)
