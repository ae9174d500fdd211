"""An order of samples for disks that dislike seeks: lanes, each of which reads runs of neighbours, one after the other.

An epoch's samples, begun at another one in each epoch, are cut into runs of neighbours, the runs are mixed, and their
sequence is cut into as many equal parts as there are lanes. Each lane goes through its part in windows, mixed in
themselves: what is read is what stands in the sequence, in its order; what is taken is mixed. All of it is computed
where it is needed, from seed and epoch.
"""

from dataclasses import dataclass

import numpy as np

from partialfc.data.index import Integers
from partialfc.runtime import counter_rng

RUN = 256  # neighbours: some 2 MB of faces, which a disk reads in one go
WINDOW = 2048  # samples that a lane mixes, at most: 64 lanes mix 131,072 from 512 runs


@dataclass(frozen=True)
class Lanes:
    """`count` lanes through `num_samples` samples."""

    seed: int
    count: int
    num_samples: int

    def lengths(self, lane: Integers) -> Integers:
        """Samples of each lane in an epoch; they differ by one at most."""
        return self._start(lane + 1) - self._start(lane)

    @property
    def window(self) -> int:
        """Samples of the longest window of any lane."""
        return -(-self._longest // self._windows)

    def taken(self, epoch: int, lane: Integers, place: Integers) -> Integers:
        """The samples that lanes take at these places of an epoch, `place` from 0 to below the lane's length."""
        length = self.lengths(lane)
        number = ((place + 1) * self._windows - 1) // length  # of the window, whose places begin at `first`
        first = number * length // self._windows
        size = (number + 1) * length // self._windows - first
        keys = counter_rng.bits(
            counter_rng.key(self.seed, "window", epoch), lane * np.int64(self._windows) + number
        )
        mixed = first + counter_rng.permuted_each(keys, place - first, size, bound=self.window)
        return self._sequence(epoch, self._start(lane) + mixed)

    def read(self, epoch: int, lane: Integers, place: Integers) -> Integers:
        """The samples at these places of what the lanes read, which goes on in the next epoch where a lane ends."""
        length = np.maximum(self.lengths(lane), 1)
        start = np.minimum(self._start(lane), self.num_samples - 1)
        now, later = start + place, start + (place - length) % length
        return np.where(place < length, self._sequence(epoch, now), self._sequence(epoch + 1, later))

    def prefetch_range(self, epoch: int, lane: Integers, place: int, width: int, *, first: bool) -> Integers:
        """The samples that lanes begin to read while they take `width` at `place`: so many that they are a window ahead,
        and at the end of a run. first: they have read nothing yet, and want the windows that they are in, too.
        """
        places = np.full(len(lane), place)
        end = self._read_up_to(lane, places + width)
        if first:
            begin = np.maximum(places - self.window, 0)
        else:  # an epoch begins where the one before, whose runs ended elsewhere, has read a window of it at least
            begin = self._read_up_to(lane, places) if place else places + self.window
        lengths = end - begin
        ahead = np.arange(lengths.sum()) + np.repeat(begin - (lengths.cumsum() - lengths), lengths)
        return self.read(epoch, np.repeat(lane, lengths), ahead)

    def _read_up_to(self, lane: Integers, place: Integers) -> Integers:
        """Where lanes have read to when they are at `place`."""
        start = self._start(lane)
        return -(-(start + place + self.window) // RUN) * RUN - start

    @property
    def _longest(self) -> int:
        return -(-self.num_samples // self.count)

    @property
    def _windows(self) -> int:
        """The length of a lane, the same for all."""
        return -(-self._longest // WINDOW)

    def _start(self, lane: Integers) -> Integers:
        return lane * self.num_samples // self.count

    def _sequence(self, epoch: int, position: Integers) -> Integers:
        """The samples at positions of an epoch's sequence of runs; the last run, a shorter one, stays the last."""
        run, within = np.divmod(position, RUN)
        whole = self.num_samples // RUN
        if whole:
            mixed = counter_rng.permuted(counter_rng.key(self.seed, "runs", epoch), run % whole, whole)
            run = np.where(run < whole, mixed, run)
        key = counter_rng.key(self.seed, "first of the runs", epoch)
        begin = counter_rng.below(key, np.array([0]), np.array([self.num_samples]))
        return (begin + run * RUN + within) % self.num_samples
