"""Counter-based draws: distributions, independence of keys, and permutations."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from partialfc.runtime import counter_rng


def test_distributions():
    index = np.arange(100_000)
    assert stats.kstest(counter_rng.random_uniform(1, index), "uniform").pvalue > 1e-3
    assert stats.kstest(counter_rng.random_normal(2, index), "norm").pvalue > 1e-3
    counts = np.bincount(counter_rng.random_integers(3, index, np.full(len(index), 7)))
    assert len(counts) == 7 and stats.chisquare(counts).pvalue > 1e-3


def test_neighbouring_keys_and_indices_are_not_correlated():
    index = np.arange(50_000)
    first = counter_rng.random_uniform(counter_rng.derive_key(0, "flip", 1), index)
    for other in (
        counter_rng.derive_key(0, "flip", 2),
        counter_rng.derive_key(1, "flip", 1),
        counter_rng.derive_key(0, "crop", 1),
    ):
        assert abs(np.corrcoef(first, counter_rng.random_uniform(other, index))[0, 1]) < 0.02
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.02


def test_draws_do_not_depend_on_the_process():
    code = "import numpy; from partialfc.runtime.counter_rng import *; print(derive_key(5, 'x', 1, 2), random_bits(9, numpy.arange(3)))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.split()[0] == str(counter_rng.derive_key(5, "x", 1, 2))
    assert other.strip().endswith(str(counter_rng.random_bits(9, np.arange(3))))


@given(key=st.integers(0, 2**64 - 1), length=st.integers(1, 3000))
def test_permuted_is_a_permutation(key, length):
    assert np.array_equal(
        np.sort(counter_rng.permute_indices(key, np.arange(length), length)), np.arange(length)
    )


@pytest.mark.parametrize(("length", "keys"), [(97, 5_000), (4096, 20_000)])
def test_permutations_move_every_index_anywhere(length, keys):
    images = np.array([counter_rng.permute_indices(key, np.array([0, 1]), length) for key in range(keys)])
    assert stats.chisquare(np.bincount(images[:, 0], minlength=length)).pvalue > 1e-3
    assert abs(np.corrcoef(images.T)[0, 1]) < 0.03


def test_a_permutation_of_many_needs_no_table():
    images = counter_rng.permute_indices(1, np.arange(1000), 42_474_558)
    assert len(set(images)) == 1000 and images.max() < 42_474_558
