"""ArcFace (arXiv 1801.07698) and the combined margin of the same paper; m1 alone is SphereFace."""

import math

import torch
from torch import Tensor
from typing_extensions import override

from partialfc.config import AngularLoss
from partialfc.head.losses.base import MIN_SINE, MarginLoss, TargetLogit


class CombinedMarginLoss(MarginLoss):
    """Target logit `s (cos(m1 t + m2) - m3)`."""

    def __init__(self, config: AngularLoss, scale: float, *, m1: float, m2: float, m3: float) -> None:
        super().__init__(scale)
        self._settings, self._m1, self._m2, self._m3 = config, m1, m2, m3

    @override
    def logit(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> Tensor:
        return self.logit_with_derivatives(angle, norm, draws).logit

    @override
    def logit_with_derivatives(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> TargetLogit:
        m2 = torch.full_like(angle, self._m2)
        return combined_margin(self._settings, angle, m1=self._m1, m2=m2, m3=self._m3)


class ArcFaceLoss(CombinedMarginLoss):
    """Target logit `s cos(t + m)`."""

    def __init__(self, config: AngularLoss, scale: float, margin: float) -> None:
        super().__init__(config, scale, m1=1.0, m2=margin, m3=0.0)


def combined_margin(config: AngularLoss, angle: Tensor, *, m1: float, m2: Tensor, m3: float) -> TargetLogit:
    """Return cos(m1 t + m2) - m3 and its derivative by cos t, m1 sin(m1 t + m2) / sin t, for angles t `[B]`.

    The derivative is 1 if `settings.gradient` is "detached".
    """
    moved = m1 * angle + m2
    logit = moved.cos() - m3
    slope = m1 * moved.sin() / angle.sin().clamp_min(MIN_SINE)
    if config.beyond_pi == "linear":
        is_beyond_pi = moved > math.pi
        logit = torch.where(is_beyond_pi, angle.cos() - 1 - m3 - ((math.pi - m2) / m1).cos(), logit)
        slope = torch.where(is_beyond_pi, 1.0, slope)
    if config.gradient == "detached":
        slope = torch.ones_like(slope)
    return TargetLogit(logit, slope, None)
