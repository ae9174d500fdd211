"""Verification metrics: pair accuracy, TAR at FAR, ROC. numpy only."""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialfc.errors import InputError

FARS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # false accept rates to report
# Bootstrap samples: number of sets, and of pairs in all of them.
_BOOTSTRAP_SAMPLES, _MIN_BOOTSTRAP_SAMPLES, _MAX_BOOTSTRAP_PAIRS = 1000, 100, 10_000_000

Similarities = NDArray[np.floating]  # `[P]`, larger is more similar
IsSame = NDArray[np.bool_]  # `[P]` whether a pair shows one person


def pair_accuracy(similarity: Similarities, is_same: IsSame, folds: int = 10) -> tuple[float, float]:
    """Return mean and standard deviation over folds of the fraction of correct pairs (LFW protocol).

    Folds are contiguous. Each is evaluated at the threshold that is best on the other folds together.
    Candidates are all midpoints between neighboring similarities; of several best ones, the median is taken.
    """
    fold = _fold_ids(len(is_same), folds)
    return _mean_std_over_folds(_is_correct(similarity, is_same, fold), fold)


def insightface_accuracy(distance: Similarities, is_same: IsSame, folds: int = 10) -> tuple[float, float]:
    """Return `pair_accuracy` by the rule of insightface's verification.py.

    Given squared distances `[P]` of L2-normalized embeddings, the thresholds are 0, 0.01, ... 3.99. Of
    several best ones, the smallest is taken. If folds are unequal, the first ones are larger.
    """
    told = (distance < np.arange(0, 4, 0.01)[:, None]) == is_same
    accuracies = []
    for fold in np.array_split(np.arange(len(is_same)), folds):
        others = np.delete(told, fold, axis=1).mean(axis=1)
        accuracies.append(told[np.argmax(others), fold].mean())
    return float(np.mean(accuracies)), float(np.std(accuracies))


def roc(similarity: Similarities, is_same: IsSame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false accept rates, ascending from 0 to 1, and the true accept rates at the same thresholds.

    A rate is NaN if there are no pairs of its kind.
    """
    false, true = (
        np.concatenate([[0.0], it / it[-1]]) if it[-1] else np.full(len(it) + 1, np.nan)
        for it in _accept_counts(similarity, is_same)
    )
    return false, true


def auc(similarity: Similarities, is_same: IsSame) -> float:
    """Return the area under the ROC curve."""
    far, tar = roc(similarity, is_same)
    return float(np.trapezoid(tar, far))


def tar_at_far(similarity: Similarities, is_same: IsSame, far: float) -> float:
    """Return the largest true accept rate at a threshold with a false accept rate of at most `far`.

    With fewer than 1 / far different pairs, this is the rate without false accepts, which does not measure
    `far`.
    """
    return tars_at_fars(similarity, is_same, [far])[0]


def tars_at_fars(similarity: Similarities, is_same: IsSame, fars: Sequence[float]) -> list[float]:
    """Return `tar_at_far` for each of `fars`; NaN if all pairs are of one kind."""
    if one_kind(is_same):
        return [math.nan] * len(fars)
    false, true = roc(similarity, is_same)
    return [float(true[false <= far].max()) for far in fars]


def insightface_tars_at_fars(similarity: Similarities, is_same: IsSame, fars: Sequence[float]) -> list[float]:
    """Return the true accept rate for each of `fars` by the rule of insightface's IJB scripts.

    It is taken at the corner of scikit-learn's roc_curve with the false accept rate nearest to `far`. Of two
    equally near ones it is the larger rate, and of several with one rate the largest true accept rate. NaN if
    all pairs are of one kind.
    """
    if one_kind(is_same):
        return [math.nan] * len(fars)
    false, true = _accept_counts(similarity, is_same)
    if len(false) > 2:  # collinear points are dropped
        corners = np.concatenate([[True], (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0), [True]])
        false, true = false[corners], true[corners]
    descending, tars = (np.concatenate([[0], it])[::-1] / it[-1] for it in (false, true))
    return [float(tars[np.argmin(np.abs(descending - far))]) for far in fars]


def _accept_counts(similarity: Similarities, is_same: IsSame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of accepted different and same pairs at each threshold, from the strictest on."""
    order = np.argsort(-similarity, kind="stable")
    ends = np.flatnonzero(np.diff(similarity[order], append=-np.inf))  # last of each run of equal values
    true = np.cumsum(is_same[order], dtype=np.int64)[ends]
    return ends + 1 - true, true


def verify(similarities: ArrayLike, is_same: ArrayLike) -> dict[str, float]:
    """Return all scores of a verification set of P pairs.

    - accuracy and accuracy_std: see pair_accuracy;
    - auc: area under the ROC curve;
    - tar@far=1e-2 and so on: see tar_at_far, for each false accept rate with at least one false accept among
    P pairs;
    - threshold: the similarity with the most correct pairs, and threshold_far, its false accept rate;
    - NAME_low and NAME_high for accuracy, auc and each tar: 95 % bootstrap confidence interval over pairs,
    deterministic.

    If all pairs are of one kind, these are NaN, with a warning.

    Args:
        similarities: Similarities `[P]`, larger is more similar, in the order of the 10 folds.
        is_same: Whether each pair shows one person, `[P]`.

    Raises:
        InputError: If the two differ in length, are empty, or `is_same` contains anything but booleans, 0
            and 1.
    """
    truth = _truth(is_same)
    found = scores_of_pairs(similarities, truth)
    if told := one_kind(truth):
        warnings.warn(told, stacklevel=2)
    return found


def one_kind(is_same: IsSame) -> str | None:
    """Return why scores of the pairs are undefined (all are of one kind), or None."""
    if not len(is_same) or is_same.any() != is_same.all():
        return None
    kind = "the same person" if is_same.all() else "different people"
    return f"scores are undefined: all {len(is_same)} pairs show {kind}; expected pairs of both kinds"


def _truth(is_same: ArrayLike) -> IsSame:
    """Return labels as booleans.

    Raises:
        InputError: If they are anything but booleans, 0 and 1.
    """
    given = np.asarray(is_same)
    if given.dtype == np.bool_:
        return given
    if given.dtype.kind not in "iuf" or not np.isin(given, (0, 1)).all():
        values = ", ".join(repr(it) for it in np.unique(given.astype(str))[:3].tolist())
        raise InputError(f"same: expected booleans, or 0 and 1, got {given.dtype} such as {values}")
    return given.astype(bool)


def scores_of_pairs(similarities: ArrayLike, truth: IsSame) -> dict[str, float]:
    """Return the scores of `verify`, without a warning if they are undefined."""
    similarity = np.asarray(similarities, np.float64)
    if similarity.ndim != 1 or similarity.shape != truth.shape or len(similarity) < 10:
        raise InputError(
            f"similarities of shape {similarity.shape} and same of {truth.shape}; expected two lists of the same length, at least 10"
        )
    if not np.isfinite(similarity).all():
        raise InputError("similarities: expected finite numbers")
    if one_kind(truth):
        return dict.fromkeys(_names(_measurable_fars(int((~truth).sum()))), math.nan)
    fold = _fold_ids(len(truth), 10)
    right = _is_correct(similarity, truth, fold)
    accuracy, deviation = _mean_std_over_folds(right, fold)
    threshold = _best_threshold(similarity, truth)
    different = similarity[~truth]
    measurable = _measurable_fars(len(different))
    found = {
        "accuracy": accuracy,
        "accuracy_std": deviation,
        "auc": auc(similarity, truth),
        **{
            f"tar@far={format_rate(far)}": tar
            for far, tar in zip(measurable, tars_at_fars(similarity, truth, measurable), strict=True)
        },
        "threshold": threshold,
        "threshold_far": float(np.mean(different > threshold)),
    }
    return found | _bootstrap_intervals(similarity, truth, right)


def _names(measurable: Sequence[float]) -> list[str]:
    """Return the names of the scores of `verify` for these false accept rates."""
    with_interval = ["auc", *(f"tar@far={format_rate(far)}" for far in measurable)]
    names = ["accuracy", "accuracy_std", *with_interval, "threshold", "threshold_far"]
    return names + [f"{name}_{end}" for name in ("accuracy", *with_interval) for end in ("low", "high")]


def scores_with_interval(scores: Mapping[str, float]) -> list[str]:
    """Return the names of the scores that have a confidence interval."""
    return [name for name in scores if f"{name}_low" in scores]


def format_scores(scores: Mapping[str, float]) -> dict[str, str]:
    """Return formatted scores for a table, with confidence intervals if available, without standard deviations."""
    return {
        name: format_with_interval(scores, name)
        if {f"{name}_low", f"{name}_high"} <= scores.keys()
        else _format_plain(name, value)
        for name, value in scores.items()
        if not name.endswith(("_low", "_high", "_std"))
    }


def percent(value: float) -> str:
    """Return a rate as percent, `-` if it is undefined."""
    return "-" if math.isnan(value) else f"{value:.2%}"


def _format_plain(name: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return (
        f"{value:.2%}"
        if name.endswith(("_far", "accuracy", "_deviation")) or "@" in name or "rank" in name
        else f"{value:.4g}"
    )


def format_with_interval(scores: Mapping[str, float], name: str) -> str:
    """Return a score with its interval, rounded accordingly: `90.8% [88.9, 92.5]`; an area without percent signs."""
    value, low, high = (scores[it] for it in (name, f"{name}_low", f"{name}_high"))
    if math.isnan(value):
        return "-"
    factor = 1 if name == "auc" else 100
    width = factor * (high - low)
    decimals = min(5, max(0, 1 - math.floor(math.log10(width)))) if width else 1
    shown, lower, upper = (f"{factor * it:.{decimals}f}" for it in (value, low, high))
    return f"{shown}{'%' if factor == 100 else ''} [{lower}, {upper}]"


def _measurable_fars(num_different: int) -> list[float]:
    """Return the FARs that `num_different` pairs can resolve (at least one false accept)."""
    return [far for far in FARS if far * num_different > 1 - 1e-9]


def format_rate(rate: float) -> str:
    """Return a power of ten as in the names of scores."""
    return f"1e-{round(-math.log10(rate))}"


def _bootstrap_intervals(similarity: Similarities, is_same: IsSame, is_correct: IsSame) -> dict[str, float]:
    """Return the percentiles 2.5 and 97.5 of the scores over bootstrap samples of pairs.

    The thresholds of the accuracy are those of the full set; `is_correct`: see `_is_correct`.
    """
    order = np.argsort(-similarity, kind="stable")
    ends = np.flatnonzero(np.diff(similarity[order], append=-np.inf))  # last of each run of equal values
    truth, told, count = is_same[order], is_correct[order], len(is_same)
    draws = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    for _ in range(max(_MIN_BOOTSTRAP_SAMPLES, min(_BOOTSTRAP_SAMPLES, _MAX_BOOTSTRAP_PAIRS // count))):
        times = np.bincount(draws.integers(count, size=count), minlength=count)
        true, false = (np.cumsum(times * kind)[ends] for kind in (truth, ~truth))
        all_true, all_false = max(1, true[-1]), max(1, false[-1])  # a sample may be of one kind
        found.setdefault("accuracy", []).append(float(times @ told) / count)
        rates = np.concatenate([[0], true]) / all_true, np.concatenate([[0], false]) / all_false
        found.setdefault("auc", []).append(float(np.trapezoid(*rates)))
        for far in _measurable_fars(int((~is_same).sum())):
            accepted = np.searchsorted(false, far * all_false, side="right")
            tar = float(true[accepted - 1]) / all_true if accepted else 0.0
            found.setdefault(f"tar@far={format_rate(far)}", []).append(tar)
    return {
        f"{name}_{end}": float(np.percentile(values, percent))
        for name, values in found.items()
        for end, percent in (("low", 2.5), ("high", 97.5))
    }


def _fold_ids(count: int, folds: int) -> NDArray[np.int64]:
    return np.arange(count) * folds // count


def _mean_std_over_folds(is_correct: IsSame, fold: NDArray[np.int64]) -> tuple[float, float]:
    """Return mean and standard deviation over the folds of the fraction of correct pairs."""
    accuracies = [np.mean(is_correct[fold == one]) for one in range(int(fold[-1]) + 1)]
    return float(np.mean(accuracies)), float(np.std(accuracies))


def _is_correct(similarity: Similarities, is_same: IsSame, fold: NDArray[np.int64]) -> IsSame:
    """Return `[P]` whether each pair is correct at the threshold that is best on the other folds."""
    right = np.zeros(len(is_same), bool)
    for one in np.unique(fold):
        threshold = _best_threshold(similarity[fold != one], is_same[fold != one])
        held_out = fold == one
        right[held_out] = (similarity[held_out] > threshold) == is_same[held_out]
    return right


def _best_threshold(similarity: Similarities, is_same: IsSame) -> float:
    order = np.argsort(similarity, kind="stable")
    ascending, matches = similarity[order], is_same[order]
    # num_correct[i]: correct pairs if the i least similar ones are rejected
    right = np.concatenate([[0], np.cumsum(~matches)]) + np.concatenate([np.cumsum(matches[::-1])[::-1], [0]])
    separable = np.concatenate([[True], np.diff(ascending) > 0, [True]])  # no threshold between equal values
    best = np.flatnonzero((right == right[separable].max()) & separable)
    cut = best[len(best) // 2]
    edges = np.concatenate([ascending[:1] - 1, ascending, ascending[-1:] + 1])
    return float((edges[cut] + edges[cut + 1]) / 2)
