"""Sample order: pure functions of seed and step, the same for every world size."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partialfc.config import Config
from partialfc.data.index import IntArray
from partialfc.data.lanes import Lanes
from partialfc.errors import InputError
from partialfc.runtime import counter_rng


class SampleRef(NamedTuple):
    """Position of a sample in the run."""

    epoch: int
    sample_index: int  # index in the dataset
    is_padding: bool  # pads the last batch of an epoch: an image from the start of the epoch that is ignored


def check_world_size(config: Config, world_size: int) -> None:
    """Raise InputError if W ranks cannot run the recipe; the message contains the valid numbers.

    W x k x micro_batch_size = global_batch_size needs an integer k, and W must divide the number of lanes.

    Raises:
        InputError: If W is not valid.
    """
    train, fitting = config.train, valid_world_sizes(config)
    if world_size not in fitting:
        parts = "" if train.micro_batch_size is None else f" in micro-batches of {train.micro_batch_size}"
        lanes = "" if config.data.order == "shuffle" else f" and data.lanes {config.data.lanes}"
        if fitting:
            expected = f"{world_size} ranks; expected one of {', '.join(map(str, fitting))}"
        elif train.micro_batch_size is None:
            expected = "any number of ranks; expected at least 2 images, as BatchNorm requires"
        else:
            expected = (
                f"any number of ranks; expected a multiple of train.micro_batch_size {train.micro_batch_size}"
            )
        raise InputError(
            f"train.global_batch_size {train.global_batch_size}{parts}{lanes} cannot be split over {expected}"
        )


def valid_world_sizes(config: Config) -> list[int]:
    """Return the numbers W of ranks for which W x k x micro_batch_size = global_batch_size has a solution, ascending.

    The list may be empty. With `data.order: blocks` they also divide the number of lanes. Without
    micro_batch_size, k is 1 and a rank has at least two images, as BatchNorm requires.
    """
    batch, micro_batch = config.train.global_batch_size, config.train.micro_batch_size
    parts, rest = divmod(batch, micro_batch or 1)
    most = parts if micro_batch else batch // 2
    dealt_out = math.gcd(parts, config.data.lanes) if config.data.order == "blocks" else parts
    return [size for size in range(1, most + 1) if dealt_out % size == 0 and not rest]


@dataclass(frozen=True)
class SampleOrder:
    """Assignment of samples to steps: an epoch contains each sample once, and its last batch is padded."""

    seed: int
    global_batch_size: int  # B
    num_samples: int
    num_lanes: int | None = None  # None: any order of samples

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps per epoch."""
        return -(-self.num_samples // self.global_batch_size)

    def sample_refs(self, step: int) -> list[SampleRef]:
        """Return the B samples of one step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        samples, padding = (
            self._shuffled_step(epoch, within) if self.num_lanes is None else self._lane_step(epoch, within)
        )
        both = zip(samples.tolist(), padding.tolist(), strict=True)
        return [SampleRef(epoch, sample, filled) for sample, filled in both]

    def prefetch_range(self, step: int, rank: int, world_size: int, *, first: bool) -> IntArray:
        """Return the samples that a rank's lanes start to read during this step.

        `first`: in the first step of the run.
        """
        assert self.num_lanes is not None
        epoch, within = divmod(step, self.steps_per_epoch)
        width = self.global_batch_size // self.num_lanes
        lanes = rank_slice(np.arange(self.num_lanes), rank, world_size)
        return self._lanes().prefetch_range(epoch, lanes, within * width, width, first=first)

    def _shuffled_step(self, epoch: int, step_in_epoch: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """Return the samples of a step, and which of them are padding: the epoch's first samples again."""
        positions = step_in_epoch * self.global_batch_size + np.arange(self.global_batch_size)
        key = counter_rng.derive_key(self.seed, "order", epoch)
        samples = counter_rng.permute_indices(key, positions % self.num_samples, self.num_samples)
        return samples, positions >= self.num_samples

    def _lane_step(self, epoch: int, step_in_epoch: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """Return the samples of a step from lanes, B / lanes of each; neighboring ranks have neighboring lanes.

        Lane lengths differ by at most one sample, so that padding, a lane's first samples again, occurs in
        the last step only.
        """
        assert self.num_lanes is not None
        lanes, width = self._lanes(), self.global_batch_size // self.num_lanes
        lane, slot = np.divmod(np.arange(self.global_batch_size), width)
        place, length = step_in_epoch * width + slot, lanes.lengths(lane)
        # More lanes than samples: the last lane has one.
        lane = np.where(length > 0, lane, self.num_lanes - 1)
        samples = lanes.sample_indices(epoch, lane, place % lanes.lengths(lane))
        return samples, place >= length

    def _lanes(self) -> Lanes:
        assert self.num_lanes is not None
        return Lanes(self.seed, self.num_lanes, self.num_samples)


class ReadRequest(NamedTuple):
    """Samples that a rank reads for one step."""

    samples: list[SampleRef]
    prefetch_indices: IntArray | None  # samples to prefetch; None: `samples`


@dataclass(frozen=True)
class RankBatchSampler:
    """Sampler of the `rank`-th of `world_size` parts of each global batch of `steps`."""

    order: SampleOrder
    rank: int
    world_size: int
    steps: range

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[ReadRequest]:
        for step in self.steps:
            yield ReadRequest(
                rank_slice(self.order.sample_refs(step), self.rank, self.world_size),
                self._prefetch_indices(step),
            )

    def _prefetch_indices(self, step: int) -> IntArray | None:
        if self.order.num_lanes is None:
            return None
        return self.order.prefetch_range(step, self.rank, self.world_size, first=step == self.steps.start)


def rank_slice(sequence: Any, rank: int, world_size: int) -> Any:
    """Return the `rank`-th of `world_size` equal parts of a sequence."""
    share = len(sequence) // world_size
    return sequence[rank * share : (rank + 1) * share]
