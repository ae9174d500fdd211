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


def check_world_size(batch: int, micro_batch: int | None, world_size: int) -> None:
    """ValueError where W x k x micro_batch = batch has no solution for this number W of ranks; names those for which
    it has.
    """
    fitting = world_sizes(batch, micro_batch)
    if world_size not in fitting:
        parts = "" if micro_batch is None else f" in micro-batches of {micro_batch}"
        raise ValueError(
            f"train.batch {batch}{parts} cannot be dealt out to {world_size} ranks; "
            f"wanted one of {', '.join(map(str, fitting)) or 'none'}"
        )


def world_sizes(batch: int, micro_batch: int | None) -> list[int]:
    """The numbers W of ranks for which W x k x micro_batch = batch has a solution, ascending; maybe none.

    Without micro_batch a rank's whole block is one: two images at least, as BatchNorm needs.
    """
    if micro_batch is None:
        return [size for size in range(1, batch // 2 + 1) if batch % size == 0]
    total, rest = divmod(batch, micro_batch)
    return [size for size in range(1, total + 1) if total % size == 0 and not rest]


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
