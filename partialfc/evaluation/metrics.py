"""How well similarities tell same from different: pair accuracy, TAR at FAR, ROC. numpy in, numbers out."""

import numpy as np
from numpy.typing import NDArray

Similarities = NDArray[np.floating]  # [P] of each pair, larger is more alike
Same = NDArray[np.bool_]  # [P] whether a pair shows one person


def pair_accuracy(similarity: Similarities, same: Same, folds: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over folds of the share of pairs told right (the LFW protocol).

    The folds are contiguous; each is judged at the threshold that is best on the other folds together. Every
    midpoint between neighbouring similarities is a candidate; of several best ones, the median is taken.
    """
    fold = np.arange(len(same)) * folds // len(same)
    accuracies = []
    for held_out in range(folds):
        threshold = _best_threshold(similarity[fold != held_out], same[fold != held_out])
        told_same = similarity[fold == held_out] > threshold
        accuracies.append(np.mean(told_same == same[fold == held_out]))
    return float(np.mean(accuracies)), float(np.std(accuracies))


def roc(similarity: Similarities, same: Same) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False accept rates, ascending from 0 to 1, and the true accept rates at the same thresholds."""
    order = np.argsort(-similarity, kind="stable")
    accepted = np.flatnonzero(np.diff(similarity[order], append=-np.inf))  # the last of each run of equals
    true = np.cumsum(same[order])[accepted] / max(1, same.sum())
    false = np.cumsum(~same[order])[accepted] / max(1, (~same).sum())
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def auc(similarity: Similarities, same: Same) -> float:
    """The area under the ROC curve."""
    far, tar = roc(similarity, same)
    return float(np.trapezoid(tar, far))


def tar_at_far(similarity: Similarities, same: Same, far: float) -> float:
    """The largest true accept rate of a threshold that falsely accepts at most the share `far`.

    With fewer than 1 / far different pairs this is the rate at no false accept.
    """
    false, true = roc(similarity, same)
    return float(true[false <= far].max())


def scores(similarity: Similarities, same: Same) -> dict[str, float]:
    """All that a run reports of a verification set; rates and accuracies are fractions."""
    accuracy, deviation = pair_accuracy(similarity, same)
    return {
        "accuracy": accuracy,
        "accuracy_std": deviation,
        "auc": auc(similarity, same),
        "tar@far=1e-3": tar_at_far(similarity, same, 1e-3),
        "tar@far=1e-4": tar_at_far(similarity, same, 1e-4),
    }


def _best_threshold(similarity: Similarities, same: Same) -> float:
    order = np.argsort(similarity, kind="stable")
    ascending, matches = similarity[order], same[order]
    # right[i]: pairs told right when the i least similar ones are told apart from the rest
    right = np.concatenate([[0], np.cumsum(~matches)]) + np.concatenate([np.cumsum(matches[::-1])[::-1], [0]])
    separable = np.concatenate([[True], np.diff(ascending) > 0, [True]])  # no threshold between equals
    best = np.flatnonzero((right == right[separable].max()) & separable)
    cut = best[len(best) // 2]
    edges = np.concatenate([ascending[:1] - 1, ascending, ascending[-1:] + 1])
    return float((edges[cut] + edges[cut + 1]) / 2)
