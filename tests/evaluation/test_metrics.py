"""Verification metrics against scikit-learn and against counting."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics

from partialfc.errors import InputError
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
    assert verification.verify(similarity, same)["tar@far=1e-2"] == 1.0
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
    similarity = similarity.astype(
        np.float64
    )  # as verify computes: where denormals are flushed, they are 0 in both
    same = np.array([True, False, *(random.random() < 0.5 for _ in similarity[2:])])
    found = verification.verify(similarity, same)
    threshold = found.pop("threshold")
    assert all(0 <= value <= 1 for value in found.values())
    told = (similarity > threshold) == same
    assert np.mean(told) >= max(np.mean(same), np.mean(~same)) - 1e-9
    for name in verification.scores_with_interval(found):
        assert found[f"{name}_low"] <= found[f"{name}_high"]
        assert re.fullmatch(r"[\d.]+%? \[[\d.]+, [\d.]+\]", verification.format_with_interval(found, name))


@pytest.mark.parametrize(
    ("different", "least"), [(99, None), (100, "1e-2"), (999, "1e-2"), (3000, "1e-3"), (10**4, "1e-4")]
)
def test_a_far_that_no_pair_can_measure_is_left_out(different, least):
    similarity = np.random.default_rng(0).normal(size=different + 100)
    found = verification.verify(similarity, np.arange(different + 100) < 100)
    rates = [name for name in verification.scores_with_interval(found) if name.startswith("tar@far=")]
    assert rates[-1:] == ([f"tar@far={least}"] if least else [])


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Accuracy, area and TAR of 100 sets of 1,000 pairs, against those of 200,000 pairs."""
    truth = verification.verify(*drawn_pairs(200_000, 2.0))
    sets = [verification.verify(*drawn_pairs(1000, 2.0, seed=1 + seed)) for seed in range(100)]
    for name in ("accuracy", "auc", "tar@far=1e-2"):
        held = np.mean([it[f"{name}_low"] <= truth[name] <= it[f"{name}_high"] for it in sets])
        assert 0.88 <= held <= 1, (name, held)


def test_the_threshold_tells_most_pairs_right_and_its_far_is_counted():
    similarity, same = drawn_pairs(1000, 2.0)
    found = verification.verify(similarity, same)
    best = max(np.mean((similarity > cut) == same) for cut in similarity)
    assert np.mean((similarity > found["threshold"]) == same) == best
    assert found["threshold_far"] == np.mean(similarity[~same] > found["threshold"])


@pytest.mark.parametrize(
    ("similarities", "same", "message"),
    [
        (
            [1.0] * 12,
            [True] * 11,
            r"of shape \(12,\) and same of \(11,\); expected two lists of the same length",
        ),
        ([1.0] * 5, [True] * 5, "at least 10"),
        ([[1.0] * 12], [[True] * 12], "expected two lists"),
        ([np.nan] * 12, [True] * 12, "expected finite numbers"),
        ([0.5] * 12, [1, -1] * 6, "same: expected booleans, or 0 and 1, got int64 such as '-1', '1'"),
        (
            [0.5] * 12,
            ["True", "False"] * 6,
            "same: expected booleans, or 0 and 1, got <U5 such as 'False', 'True'",
        ),
        ([0.5] * 12, [0.5] * 12, "same: expected booleans, or 0 and 1, got float64"),
        ([0.5] * 12, [None, True] * 6, "same: expected booleans, or 0 and 1, got object"),
    ],
)
def test_what_is_no_set_of_pairs_is_refused(similarities, same, message):
    with pytest.raises(InputError, match=message):
        verification.verify(similarities, same)


@pytest.mark.parametrize("kind", [True, False])
def test_scores_of_pairs_of_one_kind_are_undefined(kind):
    similarity = np.random.default_rng(0).normal(size=1000)
    both = verification.verify(similarity, np.arange(1000) % 2 == 0)
    with pytest.warns(UserWarning, match="scores are undefined: all 1000 pairs show (the same|different)"):
        found = verification.verify(similarity, [kind] * 1000)
    assert all(map(math.isnan, found.values()))
    assert {it for it in found if "tar@" not in it} == {it for it in both if "tar@" not in it}
    assert set(verification.format_scores(found).values()) == {"-"}
    assert math.isnan(verification.tar_at_far(similarity, np.full(1000, kind), 0.1))
    assert math.isnan(verification.auc(similarity, np.full(1000, kind)))
    assert np.isnan(verification.insightface_tars_at_fars(similarity, np.full(1000, kind), [0.1])).all()


@pytest.mark.parametrize("labels", [[0, 1] * 6, [0.0, 1.0] * 6, np.arange(12) % 2 == 1])
def test_labels_may_be_numbers(labels):
    similarity = np.arange(12) % 3 / 3
    expected = verification.verify(similarity, [False, True] * 6)
    assert verification.verify(similarity, labels) == expected


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"accuracy": math.nan, "accuracy_low": math.nan, "accuracy_high": math.nan}, "-"),
        ({"accuracy": 0.908, "accuracy_low": 0.889, "accuracy_high": 0.925}, "90.8% [88.9, 92.5]"),
        ({"accuracy": 0.998, "accuracy_low": 0.9968, "accuracy_high": 0.999}, "99.80% [99.68, 99.90]"),
        ({"accuracy": 0.6, "accuracy_low": 0.5, "accuracy_high": 0.7}, "60% [50, 70]"),
        ({"accuracy": 1.0, "accuracy_low": 1.0, "accuracy_high": 1.0}, "100.0% [100.0, 100.0]"),
        ({"auc": 0.9671, "auc_low": 0.955, "auc_high": 0.978}, "0.967 [0.955, 0.978]"),
    ],
)
def test_numbers_are_rounded_to_what_they_mean(scores, words):
    (name, *_) = scores
    assert verification.format_with_interval(scores, name) == words
