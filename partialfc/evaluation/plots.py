"""Figures of a verification set: ROC curve and hardest pairs. RGB images `[H, W, 3]`."""

from collections.abc import Callable

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from partialfc.data.images import ImageArray
from partialfc.evaluation import metrics
from partialfc.evaluation.metrics import IsSame, Similarities

GetImage = Callable[[int, int], ImageArray]

_LEAST_RATE = 1e-5  # smallest false accept rate of the plot
_COLUMNS, _ROWS = 6, 2  # pairs of each kind
_SIDE, _GAP, _LABEL = 96, 8, 24  # pixels: image, gap between pairs, text above a pair


def plot_roc(name: str, similarity: Similarities, is_same: IsSame) -> ImageArray:
    """Plot the true accept rate of a set over the logarithmic false accept rate."""
    figure = Figure(figsize=(6.4, 4.8))
    axes = figure.subplots()
    false, true = metrics.roc(similarity, is_same)
    area = metrics.auc(similarity, is_same)
    axes.step(np.maximum(false, _LEAST_RATE), true, where="post", label=f"{name}: AUC {area:.4f}")
    least = max(_LEAST_RATE, 0.5 / max(1, int((~is_same).sum())))
    axes.set(xscale="log", xlim=(least, 1), ylim=(0, 1.01), xlabel="false accept rate")
    axes.set_ylabel("true accept rate")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return _figure_to_array(figure)


def plot_hardest_pairs(pixels: GetImage, similarity: Similarities, is_same: IsSame) -> ImageArray:
    """Draw the least similar pairs of one person and the most similar pairs of two, with their similarities.

    `get_image` returns image `index` at a size; the images of pair i are 2 i and 2 i + 1.

    Returns:
        RGB image `[H, W, 3]`.
    """
    order = np.argsort(similarity, kind="stable")
    kinds = {
        "one person, least similar": order[is_same[order]],
        "two persons, most similar": order[::-1][~is_same[order[::-1]]],
    }
    parts = []
    for title, indices in kinds.items():
        cells = [
            _pair_cell(pixels, int(index), float(similarity[index])) for index in indices[: _COLUMNS * _ROWS]
        ]
        cells += [np.full((_LABEL + _SIDE + _GAP, 2 * _SIDE + _GAP, 3), 255, np.uint8)] * (
            _COLUMNS * _ROWS - len(cells)
        )
        rows = [np.hstack(cells[first : first + _COLUMNS]) for first in range(0, len(cells), _COLUMNS)]
        parts += [_text_strip(title, rows[0].shape[1], height=40, scale=0.7), *rows]
    return np.vstack(parts)


def _pair_cell(pixels: GetImage, index: int, similarity: float) -> ImageArray:
    """Draw a pair side by side, with its similarity above and a white border."""
    faces = np.hstack([pixels(2 * index + side, _SIDE) for side in (0, 1)])
    labeled = np.vstack([_text_strip(f"{similarity:.3f}", faces.shape[1], height=_LABEL, scale=0.45), faces])
    return np.pad(labeled, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)


def _text_strip(text: str, width: int, *, height: int, scale: float) -> ImageArray:
    """Draw centered text, black on white."""
    strip = np.full((height, width, 3), 255, np.uint8)
    (length, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    corner = (width - length) // 2, (height + tall) // 2
    cv2.putText(strip, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def _figure_to_array(figure: Figure) -> ImageArray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
