"""Who reads which sample when: integers."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partialfc.data.order import RankBatches, check_world_size, global_batch, steps_per_epoch, world_sizes


@given(
    batch=st.integers(1, 20), num_samples=st.integers(1, 60), epoch=st.integers(0, 3), seed=st.integers(0, 9)
)
def test_an_epoch_counts_every_sample_once(batch, num_samples, epoch, seed):
    steps = steps_per_epoch(batch, num_samples)
    places = [
        place
        for step in range(epoch * steps, (epoch + 1) * steps)
        for place in global_batch(seed, step, batch, num_samples)
    ]
    assert len(places) == steps * batch and {place.epoch for place in places} == {epoch}
    assert Counter(place.sample for place in places if not place.padding) == Counter(range(num_samples))
    assert all(0 <= place.sample < num_samples for place in places)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(place.sample for place in global_batch(seed, step, 50, 50))
        for seed in (0, 1)
        for step in (0, 1)
    }
    assert len(orders) == 4


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_read_the_blocks_of_one_list(world_size):
    steps = range(3, 8)
    parts = [RankBatches(5, 12, 31, rank, world_size, steps) for rank in range(world_size)]
    assert [len(part) for part in parts] == [5] * world_size
    for step, *blocks in zip(steps, *parts, strict=True):
        assert [place for block in blocks for place in block] == global_batch(5, step, 12, 31)


def test_world_sizes():
    assert world_sizes(512, 64) == [1, 2, 4, 8]
    assert world_sizes(96, 32) == [1, 3]
    assert world_sizes(12, None) == [1, 2, 3, 4, 6]
    assert world_sizes(100, 64) == world_sizes(1, None) == []


@pytest.mark.parametrize(
    ("batch", "micro_batch", "world_size", "message"),
    [
        (512, 64, 3, "512 in micro-batches of 64 cannot be dealt out to 3 ranks; wanted one of 1, 2, 4, 8"),
        (100, 64, 1, "wanted one of none"),
        (12, None, 5, "train.batch 12 cannot be dealt out to 5 ranks; wanted one of 1, 2, 3, 4, 6"),
    ],
)
def test_a_batch_that_cannot_be_dealt_out_is_refused(batch, micro_batch, world_size, message):
    with pytest.raises(ValueError, match=message):
        check_world_size(batch, micro_batch, world_size)
