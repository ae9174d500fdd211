"""MagFace (arXiv 2103.06627): an angular margin that grows with the norm, which is trained to measure quality."""

import math

import torch
from torch import Tensor
from typing_extensions import override

from partialfc.config import MagFace
from partialfc.head.losses.arcface import combined_margin
from partialfc.head.losses.base import MarginLoss, TargetLogit


class MagFaceLoss(MarginLoss):
    """Target logit `s cos(t + m(a))`, where a is the norm clipped to its bounds and m is linear in a.

    The loss of an image includes `weight * g(a)` with `g(a) = a / upper^2 + 1 / a`, which weighted_embeddings norms
    to the upper bound. Both terms have a gradient by the norm inside of the bounds and none outside, as in the
    authors' code.
    """

    needs_norms = True
    has_norm_gradient = True

    def __init__(self, config: MagFace, scale: float) -> None:
        super().__init__(scale)
        self._settings = config
        norms, margins = config.norm_range, config.margin_range
        self._growth = (margins[1] - margins[0]) / (norms[1] - norms[0])  # derivative of m by a

    def margin(self, norm: Tensor) -> Tensor:
        """Return the margin of images with these norms, `[B]`."""
        return self._settings.margin_range[0] + self._growth * (
            self._clipped(norm) - self._settings.norm_range[0]
        )

    @override
    def logit(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> Tensor:
        assert norm is not None
        return combined_margin(self._settings, angle, m1=1.0, m2=self.margin(norm), m3=0.0).logit

    @override
    def logit_with_derivatives(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> TargetLogit:
        assert norm is not None
        margin = self.margin(norm)
        target = combined_margin(self._settings, angle, m1=1.0, m2=margin, m3=0.0)
        moved = angle + margin
        by_margin = -moved.sin()
        if self._settings.beyond_pi == "linear":
            by_margin = torch.where(moved > math.pi, -margin.sin(), by_margin)
        return target._replace(by_norm=by_margin * self._growth * self._inside(norm))

    @override
    def norm_penalty(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        _, upper = self._settings.norm_range
        clipped, weight = self._clipped(norms), self._settings.norm_penalty_weight
        slope = (upper**-2 - clipped**-2) * self._inside(norms)
        return weight * (clipped / upper**2 + 1 / clipped), weight * slope

    def _inside(self, norms: Tensor) -> Tensor:
        """Return 1 for norms inside of the bounds and 0 for others."""
        return (norms == self._clipped(norms)).to(norms.dtype)

    def _clipped(self, norms: Tensor) -> Tensor:
        return norms.clamp(*self._settings.norm_range)
