"""Verification metrics against scikit-learn and against counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics

from partialfc.evaluation import metrics as verification


def drawn_pairs(count: int, apart: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    same = np.arange(count) % 10 < 5
    return generator.normal(size=count) + apart * same, same


@pytest.mark.parametrize("ties", [False, True])
def test_roc_and_auc_are_scikit_learns(ties):
    similarity, same = drawn_pairs(2000, 1.0)
    similarity = similarity.round(1) if ties else similarity
    far, tar = verification.roc(similarity, same)
    expected_far, expected_tar, _ = metrics.roc_curve(same, similarity, drop_intermediate=False)
    np.testing.assert_allclose(far, expected_far)
    np.testing.assert_allclose(tar, expected_tar)
    assert verification.auc(similarity, same) == pytest.approx(metrics.roc_auc_score(same, similarity))


def test_tar_at_far_by_counting():
    similarity, same = drawn_pairs(4000, 2.0)
    for far in (0.0, 1e-4, 1e-3, 0.1, 1.0):
        rates = [
            np.mean(similarity[same] > cut)
            for cut in [*similarity, -np.inf]
            if np.mean(similarity[~same] > cut) <= far
        ]
        assert verification.tar_at_far(similarity, same, far) == pytest.approx(max(rates))


def test_accuracy_of_separable_and_of_unrelated_pairs():
    similarity, same = drawn_pairs(600, 100.0)
    assert verification.pair_accuracy(similarity, same) == (1.0, 0.0)
    assert verification.scores(similarity, same)["tar@far=1e-4"] == 1.0
    mean, deviation = verification.pair_accuracy(*drawn_pairs(6000, 0.0))
    assert abs(mean - 0.5) < 0.04 and 0 < deviation < 0.06


def test_the_threshold_comes_from_the_other_folds():
    """One fold's similarities are shifted: its own best threshold would tell all its pairs right, the
    others' does not.
    """
    similarity, same = drawn_pairs(200, 100.0)
    similarity[:20] += 1000
    assert verification.pair_accuracy(similarity, same)[0] == pytest.approx(0.95)


def test_accuracy_by_trying_every_threshold():
    similarity, same = drawn_pairs(100, 1.5)
    similarity = similarity.round(1)
    fold = np.arange(100) // 10
    for held_out in range(10):
        others = fold != held_out
        cut = verification._best_threshold(similarity[others], same[others])
        tried = [np.mean((similarity[others] > value) == same[others]) for value in [-9.0, *similarity, 9.0]]
        assert np.mean((similarity[others] > cut) == same[others]) == pytest.approx(max(tried))


@given(arrays.arrays(np.float32, st.integers(10, 40), elements=st.floats(-1, 1, width=32)), st.randoms())
def test_scores_are_fractions_for_any_similarities(similarity, random):
    same = np.array([random.random() < 0.5 for _ in similarity])
    for value in verification.scores(similarity, same).values():
        assert 0 <= value <= 1
