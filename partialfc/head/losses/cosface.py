"""CosFace (arXiv 1801.09414): a margin subtracted from the cosine. Margin 0 is the normalized softmax."""

import torch
from torch import Tensor
from typing_extensions import override

from partialfc.head.losses.base import MarginLoss, TargetLogit


class CosFaceLoss(MarginLoss):
    """Target logit `s (cos t - m)`."""

    def __init__(self, scale: float, margin: float) -> None:
        super().__init__(scale)
        self._margin = margin

    @override
    def logit(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> Tensor:
        return angle.cos() - self._margin

    @override
    def logit_with_derivatives(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> TargetLogit:
        return TargetLogit(self.logit(angle, norm, draws), torch.ones_like(angle), None)
