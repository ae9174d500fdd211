"""Sample order for disks with slow seeks: lanes, each of which reads runs of consecutive samples.

The samples of an epoch, rotated by a random offset, are cut into runs of consecutive samples. The runs are
shuffled, and their sequence is split evenly into lanes. Each lane shuffles its samples within windows: reads
are sequential within a run, while samples are shuffled. Everything is computed on demand from seed and epoch.
"""

from dataclasses import dataclass

import numpy as np

from partialfc.data.index import IntArray
from partialfc.runtime import counter_rng

RUN = 256  # consecutive samples: about 2 MB of faces, read in one request
WINDOW = 2048  # maximum number of samples that a lane shuffles: 64 lanes shuffle 131,072 samples of 512 runs


@dataclass(frozen=True)
class Lanes:
    """`num_lanes` lanes through `num_samples` samples."""

    seed: int
    num_lanes: int
    num_samples: int

    def lengths(self, lane: IntArray) -> IntArray:
        """Return the number of samples of each lane in an epoch; they differ by at most one."""
        return self._start(lane + 1) - self._start(lane)

    @property
    def window(self) -> int:
        """Length of the longest window of any lane."""
        return -(-self._max_length // self._windows_per_lane)

    def sample_indices(self, epoch: int, lane: IntArray, lane_index: IntArray) -> IntArray:
        """Return the samples of lanes at these positions of an epoch; `lane_index` is below the lane's length."""
        length = self.lengths(lane)
        number = (
            (lane_index + 1) * self._windows_per_lane - 1
        ) // length  # of the window whose positions start at `first`
        first = number * length // self._windows_per_lane
        size = (number + 1) * length // self._windows_per_lane - first
        keys = counter_rng.random_bits(
            counter_rng.derive_key(self.seed, "window", epoch),
            lane * np.int64(self._windows_per_lane) + number,
        )
        mixed = first + counter_rng.permute_indices_per_key(keys, lane_index - first, size, bound=self.window)
        return self._shuffled_runs(epoch, self._start(lane) + mixed)

    def read_indices(self, epoch: int, lane: IntArray, lane_index: IntArray) -> IntArray:
        """Return the samples in the order that lanes read them; a lane that ends continues in the next epoch."""
        length = np.maximum(self.lengths(lane), 1)
        start = np.minimum(self._start(lane), self.num_samples - 1)
        now, later = start + lane_index, start + (lane_index - length) % length
        return np.where(
            lane_index < length, self._shuffled_runs(epoch, now), self._shuffled_runs(epoch + 1, later)
        )

    def prefetch_range(
        self, epoch: int, lane: IntArray, lane_index: int, count: int, *, first: bool
    ) -> IntArray:
        """Return the samples that lanes start to read while they use `count` samples at `lane_index`.

        Lanes stay one window ahead and always complete a run. `first`: nothing has been read yet, so the
        current windows are included.
        """
        places = np.full(len(lane), lane_index)
        end = self._read_end(lane, places + count)
        if first:
            begin = np.maximum(places - self.window, 0)
        else:  # the previous epoch, whose runs end elsewhere, has read at least one window of this one
            begin = self._read_end(lane, places) if lane_index else places + self.window
        lengths = end - begin
        ahead = np.arange(lengths.sum()) + np.repeat(begin - (lengths.cumsum() - lengths), lengths)
        return self.read_indices(epoch, np.repeat(lane, lengths), ahead)

    def _read_end(self, lane: IntArray, place: IntArray) -> IntArray:
        """Return the end of what lanes have read at position `lane_index`."""
        start = self._start(lane)
        return -(-(start + place + self.window) // RUN) * RUN - start

    @property
    def _max_length(self) -> int:
        return -(-self.num_samples // self.num_lanes)

    @property
    def _windows_per_lane(self) -> int:
        """Length of a lane, the same for all."""
        return -(-self._max_length // WINDOW)

    def _start(self, lane: IntArray) -> IntArray:
        return lane * self.num_samples // self.num_lanes

    def _shuffled_runs(self, epoch: int, position: IntArray) -> IntArray:
        """Return the samples at positions of an epoch's sequence of runs; a shorter last run stays last."""
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
