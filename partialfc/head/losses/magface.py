"""MagFace (arXiv 2103.06627): an angular margin that grows with the embedding's norm, which is trained to tell the image's
quality.
"""

import math

import torch
from torch import Tensor

from partialfc.config import MagFace
from partialfc.head.losses.angular import angular_targets
from partialfc.head.losses.base import Batch, State, TrainsNorms


class Magnitude(TrainsNorms):
    """The target's logit / s is cos(t + m(a)), with a the embedding's norm, clipped to its bounds, and m linear in it.

    Each image's loss has weight * g(a) beside the cross-entropy, with g(a) = a / upper^2 + 1 / a, which draws norms to the
    upper bound. Norms have gradient by both; beyond the bounds they have none, as in the authors' code.
    """

    def __init__(self, settings: MagFace, scale: float) -> None:
        super().__init__(scale)
        self._settings = settings
        norms, margins = settings.norms, settings.margins
        self._growth = (margins[1] - margins[0]) / (norms[1] - norms[0])  # of the margin by the norm

    def margins(self, batch: Batch, state: State) -> Tensor | None:
        """See Loss: each image's margin."""
        assert batch.norms is not None
        lower, _ = self._settings.norms
        return self._settings.margins[0] + self._growth * (self._clipped(batch.norms) - lower)

    def targets(self, angle: Tensor, margins: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Loss."""
        assert margins is not None
        return angular_targets(self._settings, angle, m1=1.0, m2=margins, m3=0.0)

    def by_norm(self, angle: Tensor, margins: Tensor | None, norms: Tensor) -> Tensor:
        """See Loss."""
        assert margins is not None
        moved = angle + margins
        by_margin = -moved.sin()
        if self._settings.beyond_pi == "linear":
            by_margin = torch.where(moved > math.pi, -margins.sin(), by_margin)
        return by_margin * self._growth * self._inside(norms)

    def penalty(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        """See Loss."""
        _, upper = self._settings.norms
        clipped, weight = self._clipped(norms), self._settings.weight
        slope = (upper**-2 - clipped**-2) * self._inside(norms)
        return weight * (clipped / upper**2 + 1 / clipped), weight * slope

    def _inside(self, norms: Tensor) -> Tensor:
        """1 within the bounds, 0 beyond."""
        return (norms == self._clipped(norms)).to(norms.dtype)

    def _clipped(self, norms: Tensor) -> Tensor:
        return norms.clamp(*self._settings.norms)
