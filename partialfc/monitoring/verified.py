"""Pictures of a verification: ROC curves, and the pairs that are hardest to tell. RGB images [H, W, 3]."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from partialfc.data.images import Pixels
from partialfc.evaluation import metrics
from partialfc.evaluation.pairs import Pairs

_LEAST_RATE = 1e-5  # false accept rates below are not drawn
_COLUMNS, _ROWS = 6, 2  # pairs of each kind
_SIDE = 112  # pixels of a face


def roc(sets: Sequence[Pairs], similarities: Mapping[str, NDArray[np.float64]]) -> Pixels:
    """The true accept rate of each set over the false accept rate, which is logarithmic."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for pairs in sets:
        false, true = metrics.roc(similarities[pairs.name], pairs.same)
        area = metrics.auc(similarities[pairs.name], pairs.same)
        axes.step(np.maximum(false, _LEAST_RATE), true, where="post", label=f"{pairs.name}: AUC {area:.4f}")
    least = max(_LEAST_RATE, min(0.5 / max(1, int((~pairs.same).sum())) for pairs in sets))
    axes.set(xscale="log", xlim=(least, 1), ylim=(0, 1.01), xlabel="false accept rate")
    axes.set_ylabel("true accept rate")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return _drawn(figure)


def hardest(pairs: Pairs, similarity: NDArray[np.float64]) -> Pixels:
    """The pairs of one person that are least alike, and those of two that are most alike, each with its similarity."""
    order = np.argsort(similarity, kind="stable")
    kinds = {
        "one person, least alike": order[pairs.same[order]],
        "two persons, most alike": order[::-1][~pairs.same[order[::-1]]],
    }
    figure = Figure(figsize=(12, 6), layout="constrained")
    parts = figure.subfigures(2, 1)
    assert isinstance(parts, np.ndarray)
    for part, (title, places) in zip(parts, kinds.items(), strict=True):
        part.suptitle(title)
        axes = list(part.subplots(_ROWS, _COLUMNS).flat)
        for one in axes:
            one.set_axis_off()
        for one, place in zip(axes, places, strict=False):
            _draw_pair(one, pairs, int(place), float(similarity[place]))
    return _drawn(figure)


def _draw_pair(axes: Axes, pairs: Pairs, place: int, similarity: float) -> None:
    axes.imshow(np.hstack([pairs.pixels(2 * place, _SIDE), pairs.pixels(2 * place + 1, _SIDE)]))
    axes.set_title(f"{similarity:.3f}", fontsize="small")


def _drawn(figure: Figure) -> Pixels:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
