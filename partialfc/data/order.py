"""Which rank reads which sample when: pure functions of seed and step, the same list for every world size."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from partialfc.runtime import randomness


class Place(NamedTuple):
    """Where a sample stands in the run."""

    epoch: int
    sample: int  # its index in the dataset
    padding: bool  # fills up an epoch's last batch: an image of the epoch's beginning that counts for nothing


def check_world_size(batch: int, world_size: int) -> None:
    """ValueError where a batch cannot be dealt out to the ranks evenly, two images at least to each (for BatchNorm)."""
    fitting = world_sizes(batch)
    if world_size not in fitting:
        raise ValueError(
            f"train.batch {batch} cannot be dealt out to {world_size} ranks; "
            f"wanted one of {', '.join(map(str, fitting)) or 'none: 2 images are the least'}"
        )


def world_sizes(batch: int) -> list[int]:
    """The numbers of ranks that a batch can be dealt out to, ascending; maybe none."""
    return [size for size in range(1, batch // 2 + 1) if batch % size == 0]


def steps_per_epoch(batch: int, num_samples: int) -> int:
    """Steps in which every sample is seen once."""
    return -(-num_samples // batch)


def global_batch(seed: int, step: int, batch: int, num_samples: int) -> list[Place]:
    """The B places of one step.

    An epoch goes through a keyed permutation of the samples, each once; its last batch is filled up with padding.
    """
    epoch, within = divmod(step, steps_per_epoch(batch, num_samples))
    positions = within * batch + np.arange(batch)
    order = randomness.permuted(randomness.key(seed, "order", epoch), positions % num_samples, num_samples)
    places = zip(order.tolist(), (positions >= num_samples).tolist(), strict=True)
    return [Place(epoch, sample, padding) for sample, padding in places]


@dataclass(frozen=True)
class RankBatches:
    """For each of `steps`, the block of the global batch that a rank reads: its `rank`-th of `world_size` parts."""

    seed: int
    batch: int
    num_samples: int
    rank: int
    world_size: int
    steps: range

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Place]]:
        share = self.batch // self.world_size
        for step in self.steps:
            whole = global_batch(self.seed, step, self.batch, self.num_samples)
            yield whole[self.rank * share : (self.rank + 1) * share]
