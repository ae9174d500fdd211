"""UniFace (Zhou et al., ICCV 2023): one threshold for all pairs of images and classes."""

import math

import torch
from torch import Tensor
from typing_extensions import override

from partialfc.config import UniFace
from partialfc.head.losses.base import TargetLogit
from partialfc.head.losses.sigmoid import SigmoidLoss, TermWeights


class UniFaceLoss(SigmoidLoss):
    """Target logit `s (cos t - m)`, logits of negatives `s cos t`.

    The threshold starts at ln(10 C r) for the C r classes of a step, as in the authors' code.
    """

    def __init__(self, config: UniFace, scale: float, margin: float) -> None:
        super().__init__(scale, TermWeights(1.0, config.negative_weight))
        self._margin = margin

    @override
    def init_state(self, num_classes: float) -> None:
        self.state["threshold"].fill_(math.log(10 * num_classes))

    @override
    def logit(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> Tensor:
        return angle.cos() - self._margin

    @override
    def logit_with_derivatives(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> TargetLogit:
        return TargetLogit(self.logit(angle, norm, draws), torch.ones_like(angle), None)
