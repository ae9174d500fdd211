"""ArcFace (arXiv 1801.07698) and SphereFace (1704.08063), as one function of the angle: cos(m1 t + m2) - m3."""

import math

import torch
from torch import Tensor

from partialfc.config import AngularMargin
from partialfc.head.losses.base import Loss

# The smallest sine a slope is divided by: it keeps the slope finite where t is 0 or pi, and lies below
# t = 1e-4, down to which the embedding's gradient is right.
SMALLEST_SINE = 2.0**-14


class Angular(Loss):
    """The target's logit / s is cos(m1 t + m2) - m3."""

    def __init__(self, settings: AngularMargin, scale: float, *, m1: float, m2: float, m3: float) -> None:
        super().__init__(scale)
        self._settings, self._m1, self._m2, self._m3 = settings, m1, m2, m3

    def targets(self, angle: Tensor, margins: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Loss."""
        m2 = torch.full_like(angle, self._m2)
        return angular_targets(self._settings, angle, m1=self._m1, m2=m2, m3=self._m3)


def angular_targets(
    settings: AngularMargin, angle: Tensor, *, m1: float, m2: Tensor, m3: float
) -> tuple[Tensor, Tensor]:
    """cos(m1 t + m2) - m3, and its derivative by cos t, m1 sin(m1 t + m2) / sin t; all [N].

    The derivative is taken as 1 where `settings.gradient` is detached.
    """
    moved = m1 * angle + m2
    logit = moved.cos() - m3
    slope = m1 * moved.sin() / angle.sin().clamp_min(SMALLEST_SINE)
    if settings.beyond_pi == "linear":
        past = moved > math.pi
        logit = torch.where(past, angle.cos() - 1 - m3 - ((math.pi - m2) / m1).cos(), logit)
        slope = torch.where(past, 1.0, slope)
    if settings.gradient == "detached":
        slope = torch.ones_like(slope)
    return logit, slope
