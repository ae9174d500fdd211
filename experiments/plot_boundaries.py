"""Plot the decision boundary between two classes that training with each loss demands of class 1.

    python -m experiments.plot_boundaries boundaries.png

An image of class 1 is at angle t1 from its center and t2 from that of class 2. It is on its side if its target
logit with margin is larger. Elastic margins are random per image: the band contains 95 % of them.
"""

import argparse
from pathlib import Path
from statistics import NormalDist

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray

from partialfc.config import AnyLoss, ArcFace, CosFace, CosineSoftmax, ElasticArcFace, ElasticCosFace
from partialfc.config.scheduled import value_at
from partialfc.head.losses import build_loss

LOSSES: dict[str, AnyLoss] = {
    "ArcFace, m 0.5": ArcFace(),
    "ElasticFace-Arc, 0.5 ± 0.05": ElasticArcFace(),
    "CosFace, m 0.35": CosFace(),
    "ElasticFace-Cos, 0.35 ± 0.05": ElasticCosFace(),
}
_BAND_COVERAGE = 0.95  # of the margins, within the band


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="PNG to write")
    options = parser.parse_args()
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(LOSSES), figsize=(12, 3.4), sharey=True, layout="constrained")
    first = np.linspace(0, np.pi / 2, 400)
    for axis, (title, margin) in zip(axes, LOSSES.items(), strict=True):
        low, middle, high = (boundary(margin, first, quantile) for quantile in quantiles(margin))
        axis.plot(
            first, boundary(CosineSoftmax(), first, 0.0), color="gray", linestyle=":", label="no margin"
        )
        axis.fill_between(
            first, low, high, alpha=0.35, linewidth=0, label=f"{_BAND_COVERAGE:.0%} of the draws"
        )
        axis.plot(first, middle, label="boundary")
        axis.set(title=title, xlabel="angle with class 1", xlim=(0, np.pi / 2), ylim=(0, np.pi / 2))
    axes[0].set_ylabel("angle with class 2")
    axes[1].legend(loc="lower right", fontsize=8)
    figure.savefig(options.out, dpi=120)


def quantiles(margin: AnyLoss) -> tuple[float, float, float]:
    """Return the ends and the middle of the band, in standard deviations."""
    end = NormalDist().inv_cdf((1 + _BAND_COVERAGE) / 2) if hasattr(margin, "sigma") else 0.0
    return -end, 0.0, end


def boundary(margin: AnyLoss, first: NDArray[np.float64], deviations: float) -> NDArray[np.float64]:
    """Return the angle to class 2 with equal logits, for angles to class 1; nan if it does not exist."""
    angle = torch.from_numpy(first)
    drawn = None
    if isinstance(margin, ElasticArcFace | ElasticCosFace):
        drawn = torch.full_like(angle, value_at(margin.margin, 0) + deviations * margin.sigma)
    logit = build_loss(margin).logit(angle, None, drawn)
    found: NDArray[np.float64] = torch.where(logit.abs() <= 1, logit, torch.nan).acos().numpy()
    return found


if __name__ == "__main__":
    main()
