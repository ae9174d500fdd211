"""Who reads which sample when: integers."""

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers.runs import config_of
from hypothesis import given
from hypothesis import strategies as st

from partialfc.data.lanes import RUN
from partialfc.data.sampler import RankBatchSampler, SampleOrder, check_world_size, valid_world_sizes
from partialfc.errors import InputError

ORDERS = pytest.mark.parametrize("lanes", [None, 4, 12])


@given(
    batch=st.integers(1, 5),
    num_samples=st.integers(1, 60),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 9),
    lanes=st.sampled_from([None, 1, 4, 12]),
)
def test_an_epoch_counts_every_sample_once(batch, num_samples, epoch, seed, lanes):
    order = SampleOrder(seed, batch * 12, num_samples, lanes)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    places = [order.sample_refs(step) for step in steps]
    flat = [place for step in places for place in step]
    assert len(flat) == len(steps) * order.global_batch_size and {place.epoch for place in flat} == {epoch}
    assert Counter(place.sample_index for place in flat if not place.is_padding) == Counter(
        range(num_samples)
    )
    assert all(0 <= place.sample_index < num_samples for place in flat)
    assert not any(place.is_padding for step in places[:-1] for place in step)  # in the last step only


@ORDERS
def test_epochs_and_seeds_have_orders_of_their_own(lanes):
    orders = {
        tuple(place.sample_index for place in SampleOrder(seed, 60, 60, lanes).sample_refs(step))
        for seed in (0, 1)
        for step in (0, 1)
    }
    assert len(orders) == 4


@ORDERS
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_read_the_blocks_of_one_list(world_size, lanes):
    order, steps = SampleOrder(5, 12, 31, lanes), range(3, 8)
    parts = [RankBatchSampler(order, rank, world_size, steps) for rank in range(world_size)]
    assert [len(part) for part in parts] == [5] * world_size
    for step, *requests in zip(steps, *parts, strict=True):
        assert [place for request in requests for place in request.samples] == order.sample_refs(step)


@pytest.mark.parametrize(
    "first",
    [0, 170, 1150],  # the last one goes on into another epoch
)
def test_a_rank_is_told_of_what_its_lanes_will_take_before_they_do(first):
    order = SampleOrder(5, 24, 30_000, 12)
    requests = list(RankBatchSampler(order, 1, 3, range(first, first + 300)))
    told: set[int] = set()
    for request in requests:
        told |= set(request.prefetch_indices.tolist())
        assert {place.sample_index for place in request.samples if not place.is_padding} <= told
    lengths = [len(request.prefetch_indices) for request in requests]
    assert sum(lengths[1:]) < 8 * 300 + 4 * 2 * RUN  # what is taken, and runs that are not at their end
    runs = np.concatenate(
        [np.diff(request.prefetch_indices) for request in requests[1:] if len(request.prefetch_indices)]
    )
    assert (runs == 1).mean() > 0.98


def config(batch: int, micro_batch: int | None, **data):
    train = {"global_batch_size": batch, "micro_batch_size": micro_batch}
    return config_of(Path("pack"), Path("output"), train=train, data=data)


def test_world_sizes():
    assert valid_world_sizes(config(512, 64)) == [1, 2, 4, 8]
    assert valid_world_sizes(config(96, 32)) == [1, 3]
    assert valid_world_sizes(config(12, None)) == [1, 2, 3, 4, 6]
    assert valid_world_sizes(config(100, 64)) == valid_world_sizes(config(1, None)) == []
    assert valid_world_sizes(config(512, 64, order="blocks", lanes=4)) == [1, 2, 4]
    assert valid_world_sizes(config(12, None, order="blocks", lanes=6)) == [1, 2, 3, 6]


def test_lanes_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(
        msgspec.ValidationError, match=r"data.lanes: 64; expected a divisor of train.global_batch_size, 96"
    ):
        config(96, None, order="blocks")


@pytest.mark.parametrize(
    ("batch", "micro_batch", "data", "world_size", "message"),
    [
        (
            512,
            64,
            {},
            3,
            "512 in micro-batches of 64 cannot be split over 3 ranks; expected one of 1, 2, 4, 8",
        ),
        (100, 64, {}, 1, "any number of ranks; expected a multiple of train.micro_batch_size 64"),
        (1, None, {}, 1, "any number of ranks; expected at least 2 images"),
        (
            12,
            None,
            {},
            5,
            "train.global_batch_size 12 cannot be split over 5 ranks; expected one of 1, 2, 3, 4, 6",
        ),
        (
            12,
            None,
            {"order": "blocks", "lanes": 4},
            3,
            "12 and data.lanes 4 cannot .* expected one of 1, 2, 4$",
        ),
    ],
)
def test_a_batch_that_cannot_be_dealt_out_is_refused(batch, micro_batch, data, world_size, message):
    with pytest.raises(InputError, match=message):
        check_world_size(config(batch, micro_batch, **data), world_size)
