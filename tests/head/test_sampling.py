"""Sampling: each class equally often, the same set for any number of ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from partialfc.head.sampling import num_sampled_classes, sample_classes, union_sorted
from partialfc.head.state import class_range


@pytest.mark.parametrize("rate", [0.3, 0.07])
def test_every_class_is_sampled_equally_often(rate):
    classes, steps = 211, 20_000
    counts = np.zeros(classes, np.int64)
    for step in range(steps):
        counts[sample_classes(classes, num_sampled_classes(classes, rate), 0, step, range(classes))] += 1
    assert counts.sum() == steps * num_sampled_classes(classes, rate)
    # Within a step the draws exclude one another, so that the statistic is at most chi-square distributed.
    assert stats.chisquare(counts).pvalue > 1e-3
    assert counts.std() > 0.3 * np.sqrt(counts.mean())  # drawn, not dealt out in turn


@given(
    classes=st.integers(1, 500),
    rate=st.floats(1e-6, 1),
    seed=st.integers(0, 5),
    step=st.integers(0, 10**9),
    world_size=st.integers(1, 9),
)
def test_the_ranks_together_sample_what_one_rank_would(classes, rate, seed, step, world_size):
    everything = sample_classes(classes, num_sampled_classes(classes, rate), seed, step, range(classes))
    assert len(everything) == num_sampled_classes(classes, rate) == len(set(everything))
    parts = [
        sample_classes(
            classes, num_sampled_classes(classes, rate), seed, step, class_range(classes, rank, world_size)
        )
        for rank in range(world_size)
    ]
    assert np.array_equal(np.concatenate(parts), everything)


@given(classes=st.integers(2, 300), rate=st.floats(0.01, 0.99), step=st.integers(0, 100))
def test_neighbours_on_the_circle_are_apart_by_at_most_two_strata(classes, rate, step):
    drawn = sample_classes(classes, num_sampled_classes(classes, rate), 0, step, range(classes))
    gaps = np.diff(np.append(drawn, drawn[0] + classes))
    assert gaps.max() <= 2 * -(-classes // num_sampled_classes(classes, rate)) - 1


def test_a_shard_of_a_billion_classes_costs_what_it_samples():
    owned = class_range(10**9, 511, 512)
    drawn = sample_classes(10**9, 10**7, 0, 7, owned)
    assert abs(len(drawn) - 0.01 * len(owned)) < 2
    assert drawn[0] in owned and drawn[-1] in owned


@pytest.mark.parametrize(
    ("drawn", "targets"),
    [
        ([], []),
        ([], [3, 3, 5]),
        ([1, 4], []),
        ([1, 4], [0, 1, 1, 2, 4, 9, 9]),
        ([0], [0]),
        ([5, 6], [0, 0, 7]),
    ],
)
def test_the_union_with_the_targets_is_sorted_and_without_repeats(drawn, targets):
    found = union_sorted(np.array(drawn, np.int64), np.array(targets, np.int64))
    assert found.tolist() == sorted({*drawn, *targets})
