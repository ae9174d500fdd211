"""Lanes: every sample of an epoch once, read in runs of neighbors."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partialfc.data.lanes import RUN, WINDOW, Lanes


def everywhere(lanes: Lanes) -> tuple[np.ndarray, np.ndarray]:
    """Every lane with every place of it."""
    lengths = lanes.lengths(np.arange(lanes.num_lanes))
    lane = np.repeat(np.arange(lanes.num_lanes), lengths)
    return lane, np.concatenate([np.arange(length) for length in lengths])


@given(
    count=st.integers(1, 70),
    num_samples=st.integers(1, 20_000),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_an_epoch_of_all_lanes_takes_and_reads_every_sample_once(count, num_samples, epoch, seed):
    lanes = Lanes(seed, count, num_samples)
    for samples in (
        lanes.sample_indices(epoch, *everywhere(lanes)),
        lanes.read_indices(epoch, *everywhere(lanes)),
    ):
        assert np.array_equal(np.sort(samples), np.arange(num_samples))


def test_a_lane_reads_runs_of_neighbours_and_takes_them_mixed_within_its_windows():
    lanes = Lanes(3, 5, 100_003)
    place = np.arange(lanes.lengths(np.array([2]))[0])
    lane = np.full(len(place), 2)
    read, taken = lanes.read_indices(1, lane, place), lanes.sample_indices(1, lane, place)
    assert (np.diff(read) == 1).mean() > 1 - 1.1 / RUN
    assert lanes.window <= WINDOW and (np.diff(taken) == 1).mean() < 0.01
    where = {sample: at for at, sample in enumerate(read.tolist())}
    moved = np.array([where[sample] for sample in taken.tolist()]) - place
    assert np.abs(moved).max() < lanes.window and np.abs(moved).mean() > lanes.window / 4


def test_what_is_taken_was_read_a_window_before_at_most():
    """So that a disk that is told what comes a window later has it when it is taken."""
    lanes = Lanes(3, 1, 10_000)
    place = np.arange(10_000)
    read = lanes.read_indices(0, np.zeros(10_000, int), place).tolist()
    taken = lanes.sample_indices(0, np.zeros(10_000, int), place).tolist()
    for at in range(0, 10_000, 100):
        assert set(taken[: at + 1]) <= set(read[: at + lanes.window])


def test_where_a_lane_ends_it_reads_on_in_the_next_epoch():
    lanes = Lanes(3, 4, 8000)
    assert np.array_equal(
        lanes.read_indices(0, np.array([1, 1]), np.array([2000, 2005])),
        lanes.read_indices(1, np.array([1, 1]), np.array([0, 5])),
    )


def test_the_places_of_a_sample_differ_from_epoch_to_epoch():
    lanes = Lanes(0, 8, 8000)
    firsts = [lanes.sample_indices(epoch, np.arange(8), np.zeros(8, int)) for epoch in range(300)]
    assert np.bincount(np.concatenate(firsts) // 800, minlength=10).min() > 180  # 240 expected in each tenth
    assert max(Counter(np.concatenate(firsts).tolist()).values()) < 8


@pytest.mark.parametrize("num_samples", [42_474_558, 1 << 31])
def test_large_packs_need_no_table(num_samples):
    lanes = Lanes(1, 64, num_samples)
    taken = lanes.sample_indices(2, np.repeat(np.arange(64), 8), np.tile(np.arange(8), 64))
    assert len(set(taken.tolist())) == 512 and taken.min() >= 0 and taken.max() < num_samples
