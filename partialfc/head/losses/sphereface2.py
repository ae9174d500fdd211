"""SphereFace2 (arXiv 2108.01513), variant C: binary classification with a margin on both sides of the threshold."""

import math

import torch
from torch import Tensor
from typing_extensions import override

from partialfc.config import SphereFace2
from partialfc.head.losses.base import TargetLogit
from partialfc.head.losses.sigmoid import SigmoidLoss, TermWeights


class SphereFace2Loss(SigmoidLoss):
    """Target logit `s (g(cos t) - m)`, logits of negatives `s (g(cos t) + m)`, `g(c) = 2 ((c + 1) / 2)^power - 1`.

    Positive and negative terms weigh `own` and `1 - own`, times `weight / s`. The threshold starts where the loss is
    minimal while all cosines are 0, as in the authors' code.
    """

    def __init__(self, config: SphereFace2, scale: float, margin: float) -> None:
        fraction = config.loss_weight / scale
        super().__init__(
            scale, TermWeights(fraction * config.positive_weight, fraction * (1 - config.positive_weight))
        )
        self._margin, self._power, self._own = margin, config.power, config.positive_weight

    @override
    def init_state(self, num_classes: float) -> None:
        # The derivative by b is 0 there, which is a quadratic equation in exp(-b).
        ratio = self._own / ((1 - self._own) * max(1.0, num_classes - 1))
        middle = 2 * 0.5**self._power - 1
        positive, negative = self.scale * (middle - self._margin), self.scale * (middle + self._margin)
        root = math.sqrt((1 - ratio) ** 2 + 4 * ratio * math.exp(positive - negative))
        self.state["threshold"].fill_(negative + math.log(1 - ratio + root) - math.log(2 * ratio))

    @override
    def logit(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> Tensor:
        half = (angle / 2).cos().square()  # (cos t + 1) / 2
        return 2 * half**self._power - 1 - self._margin

    @override
    def logit_with_derivatives(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> TargetLogit:
        half = (angle / 2).cos().square()
        logit = 2 * half**self._power - 1 - self._margin
        return TargetLogit(logit, self._power * half ** (self._power - 1), None)

    @override
    def transform_(self, logits_: Tensor) -> Tensor:
        half = (logits_ / self.scale).clamp_(-1, 1).add_(1).mul_(0.5)
        slope = self._power * half ** (self._power - 1)
        torch.pow(half, self._power, out=logits_)
        logits_.mul_(2).add_(self._margin - 1).mul_(self.scale)
        return slope
