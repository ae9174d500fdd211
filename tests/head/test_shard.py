"""Who owns which classes: integers."""

from itertools import chain

import pytest

from partialfc.head.state import class_range


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_classes", [1, 2, 8, 9, 1000])
def test_every_class_has_one_owner_and_no_shard_is_larger_than_the_first(num_classes, world_size):
    shards = [class_range(num_classes, rank, world_size) for rank in range(world_size)]
    assert list(chain(*shards)) == list(range(num_classes))
    assert max(map(len, shards)) == len(shards[0]) == -(-num_classes // world_size)
