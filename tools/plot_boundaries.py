"""Draws where an image is between two classes, by the losses' own targets: the boundary that training asks of class 1.

    tools/plot_boundaries.py boundaries.png

An image of class 1 at angle t1 from its centre and t2 from that of class 2 is on its side where the target's logit, margin
and all, is the larger one. Elastic margins are drawn for each image: the band holds 95 % of the draws.
"""

import sys
from pathlib import Path
from statistics import NormalDist

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from partialfc.config import AnyLoss, ArcFace, CosFace, CosineSoftmax, ElasticArcFace, ElasticCosFace
from partialfc.config.scheduled import value_at
from partialfc.head.losses import build_loss

LOSSES: dict[str, AnyLoss] = {
    "ArcFace, m 0.5": ArcFace(),
    "ElasticFace-Arc, 0.5 ± 0.05": ElasticArcFace(),
    "CosFace, m 0.35": CosFace(),
    "ElasticFace-Cos, 0.35 ± 0.05": ElasticCosFace(),
}
_BAND_COVERAGE = 0.95  # of the draws, within the band


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: plot_boundaries.py OUT.png")
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(LOSSES), figsize=(12, 3.4), sharey=True, layout="constrained")
    first = np.linspace(0, np.pi / 2, 400)
    for axis, (title, margin) in zip(axes, LOSSES.items(), strict=True):
        low, middle, high = (boundary(margin, first, quantile) for quantile in quantiles(margin))
        axis.plot(
            first, boundary(CosineSoftmax(), first, 0.0), color="grey", linestyle=":", label="no margin"
        )
        axis.fill_between(
            first, low, high, alpha=0.35, linewidth=0, label=f"{_BAND_COVERAGE:.0%} of the draws"
        )
        axis.plot(first, middle, label="boundary")
        axis.set(title=title, xlabel="angle with class 1", xlim=(0, np.pi / 2), ylim=(0, np.pi / 2))
    axes[0].set_ylabel("angle with class 2")
    axes[1].legend(loc="lower right", fontsize=8)
    figure.savefig(sys.argv[1], dpi=120)


def quantiles(margin: AnyLoss) -> tuple[float, float, float]:
    """The ends and the middle of the band, in deviations of a draw."""
    end = NormalDist().inv_cdf((1 + _BAND_COVERAGE) / 2) if hasattr(margin, "sigma") else 0.0
    return -end, 0.0, end


def boundary(margin: AnyLoss, first: NDArray[np.float64], deviations: float) -> NDArray[np.float64]:
    """The angle with class 2 at which its logit is the target's, for angles with class 1; nan where none is."""
    angle = torch.from_numpy(first)
    drawn = None
    if isinstance(margin, ElasticArcFace | ElasticCosFace):
        drawn = torch.full_like(angle, value_at(margin.margin, 0) + deviations * margin.sigma)
    logit = build_loss(margin).logit(angle, None, drawn)
    found: NDArray[np.float64] = torch.where(logit.abs() <= 1, logit, torch.nan).acos().numpy()
    return found


if __name__ == "__main__":
    main()
