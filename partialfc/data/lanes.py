"""An order of samples for disks that dislike seeks: lanes, each of which reads runs of neighbours, one after the other.

An epoch's samples, begun at another one in each epoch, are cut into runs of neighbours, the runs are mixed, and their
sequence is cut into as many equal parts as there are lanes. Each lane goes through its part in windows, mixed in
themselves: what is read is what stands in the sequence, in its order; what is taken is mixed. All of it is computed
where it is needed, from seed and epoch.
"""

from dataclasses import dataclass

import numpy as np

from partialfc.data.index import IntArray
from partialfc.runtime import counter_rng

RUN = 256  # neighbours: some 2 MB of faces, which a disk reads in one go
WINDOW = 2048  # samples that a lane mixes, at most: 64 lanes mix 131,072 from 512 runs


@dataclass(frozen=True)
class Lanes:
    """`num_lanes` lanes through `num_samples` samples."""

    seed: int
    num_lanes: int
    num_samples: int

    def lengths(self, lane: IntArray) -> IntArray:
        """Samples of each lane in an epoch; they differ by one at most."""
        return self._start(lane + 1) - self._start(lane)

    @property
    def window(self) -> int:
        """Samples of the longest window of any lane."""
        return -(-self._max_length // self._windows_per_lane)

    def sample_indices(self, epoch: int, lane: IntArray, lane_index: IntArray) -> IntArray:
        """The samples that lanes take at these places of an epoch, `lane_index` from 0 to below the lane's length."""
        length = self.lengths(lane)
        number = (
            (lane_index + 1) * self._windows_per_lane - 1
        ) // length  # of the window, whose places begin at `first`
        first = number * length // self._windows_per_lane
        size = (number + 1) * length // self._windows_per_lane - first
        keys = counter_rng.random_bits(
            counter_rng.derive_key(self.seed, "window", epoch),
            lane * np.int64(self._windows_per_lane) + number,
        )
        mixed = first + counter_rng.permute_indices_per_key(keys, lane_index - first, size, bound=self.window)
        return self._shuffled_runs(epoch, self._start(lane) + mixed)

    def read_indices(self, epoch: int, lane: IntArray, lane_index: IntArray) -> IntArray:
        """The samples at these places of what the lanes read, which goes on in the next epoch where a lane ends."""
        length = np.maximum(self.lengths(lane), 1)
        start = np.minimum(self._start(lane), self.num_samples - 1)
        now, later = start + lane_index, start + (lane_index - length) % length
        return np.where(
            lane_index < length, self._shuffled_runs(epoch, now), self._shuffled_runs(epoch + 1, later)
        )

    def prefetch_range(
        self, epoch: int, lane: IntArray, lane_index: int, count: int, *, first: bool
    ) -> IntArray:
        """The samples that lanes begin to read while they take `count` at `lane_index`: so many that they are a window ahead,
        and at the end of a run. first: they have read nothing yet, and want the windows that they are in, too.
        """
        places = np.full(len(lane), lane_index)
        end = self._read_end(lane, places + count)
        if first:
            begin = np.maximum(places - self.window, 0)
        else:  # an epoch begins where the one before, whose runs ended elsewhere, has read a window of it at least
            begin = self._read_end(lane, places) if lane_index else places + self.window
        lengths = end - begin
        ahead = np.arange(lengths.sum()) + np.repeat(begin - (lengths.cumsum() - lengths), lengths)
        return self.read_indices(epoch, np.repeat(lane, lengths), ahead)

    def _read_end(self, lane: IntArray, place: IntArray) -> IntArray:
        """Where lanes have read to when they are at `place`."""
        start = self._start(lane)
        return -(-(start + place + self.window) // RUN) * RUN - start

    @property
    def _max_length(self) -> int:
        return -(-self.num_samples // self.num_lanes)

    @property
    def _windows_per_lane(self) -> int:
        """The length of a lane, the same for all."""
        return -(-self._max_length // WINDOW)

    def _start(self, lane: IntArray) -> IntArray:
        return lane * self.num_samples // self.num_lanes

    def _shuffled_runs(self, epoch: int, position: IntArray) -> IntArray:
        """The samples at positions of an epoch's sequence of runs; the last run, a shorter one, stays the last."""
        run, within = np.divmod(position, RUN)
        whole = self.num_samples // RUN
        if whole:
            mixed = counter_rng.permute_indices(
                counter_rng.derive_key(self.seed, "runs", epoch), run % whole, whole
            )
            run = np.where(run < whole, mixed, run)
        key = counter_rng.derive_key(self.seed, "first of the runs", epoch)
        begin = counter_rng.random_integers(key, np.array([0]), np.array([self.num_samples]))
        return (begin + run * RUN + within) % self.num_samples
