"""Strata of a sample: a pure function of (seed, step), equal for any number of ranks, without communication.

The circle of classes is rotated by a random integer and cut into nearly equal strata. Each stratum gives one class,
and all classes have the same probability. Cost and memory are proportional to the result.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from partialfc.runtime import counter_rng

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Consecutive strata whose classes are on this rank, with consecutive rows."""

    rows: range  # of this rank
    offset: int  # row of a class minus its position in the rotated circle
    first: int  # first stratum whose class is one of the rows
    count: int  # number of these strata


@dataclass(frozen=True)
class Strata:
    """Strata of one step.

    Args:
        num_classes: Number of classes of all ranks, C.
        count: Number of strata, n; stratum k contains the positions [k C // n, (k + 1) C // n).
        key: Key of the draws.
        local_classes: Classes of this rank.
    """

    num_classes: int
    count: int
    key: int
    local_classes: range

    def rows(self, piece: Piece) -> Ints:
        """Return the rows that the strata of a piece give, ascending."""
        strata = np.arange(piece.first, piece.first + piece.count + 1)
        edges = self._edges(strata)
        drawn = counter_rng.random_integers(self.key, strata[:-1], np.diff(edges))
        drawn += edges[:-1]
        drawn += piece.offset
        return drawn

    def draw(self, strata: Ints) -> Ints:
        """Return the position that each stratum gives."""
        edges = self._edges(strata)
        return edges + counter_rng.random_integers(self.key, strata, self._edges(strata + 1) - edges)

    def stratum_of(self, positions: Ints) -> Ints:
        """Return the stratum of each position."""
        return ((positions + 1) * self.count - 1) // self.num_classes

    def pieces(self) -> tuple[Piece, Piece]:
        """Return the strata of this rank, ascending by rows; the second piece is usually empty."""
        size = len(self.local_classes)
        rotation = int(
            counter_rng.random_integers(self.key, np.array([self.count]), np.array([self.num_classes]))[0]
        )
        start = (self.local_classes.start - rotation) % self.num_classes
        wrapped = max(0, start + size - self.num_classes)  # rows of the second piece
        return (
            self._piece(range(size - wrapped), start),
            self._piece(range(size - wrapped, size), 0),
        )

    def _edges(self, strata: Ints) -> Ints:
        """Return the first position of each stratum."""
        edges = strata * self.num_classes
        edges //= self.count
        return edges

    def _piece(self, rows: range, start: int) -> Piece:
        """Return the strata that give the positions from `start` on; only the first and the last extend beyond them."""
        offset = rows.start - start
        if not rows:
            return Piece(rows, offset, 0, 0)
        first, last = self.stratum_of(np.array([start, start + len(rows) - 1])).tolist()
        lowest, highest = self.draw(np.array([first, last])).tolist()
        first += lowest < start
        last -= highest >= start + len(rows)
        return Piece(rows, offset, first, last + 1 - first)
