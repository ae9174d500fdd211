"""Losses that ask of each class by itself whether an image is of it, with one threshold for all: UniFace (Zhou et al.,
ICCV 2023) and SphereFace2 (arXiv 2108.01513).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from partialfc.config import SphereFace2, UniFace
from partialfc.head.losses.base import Loss


class Weights(NamedTuple):
    """Of the terms of an image's loss."""

    own: float
    others: float  # of each


class Binary(Loss):
    """An image's loss is own * softplus(b - s T) of its own class, with T as `targets` has it, and others * softplus(z - b) of
    each other one, with z as `raised` has it. The threshold b is the loss's state, and is learnt by plain gradient
    steps at the centres' learning rate. Of sampled classes the terms count as they are, with `correction: log_rate` for all.
    """

    def __init__(self, scale: float, weights: Weights) -> None:
        super().__init__(scale)
        self.weights = weights
        self.state = {"threshold": torch.tensor(0.0)}

    def raised(self, logits_: Tensor) -> Tensor | None:
        """`logits_` of negatives, s cos t, as z, in place; their derivatives by s cos t, None: 1."""
        return None


class Unified(Binary):
    """UniFace: T is cos t - margin, z is s cos t; b begins at ln(10 C r), of the C r classes of a step, as in the authors'
    code.
    """

    def __init__(self, settings: UniFace, scale: float, margin: float) -> None:
        super().__init__(scale, Weights(1.0, settings.weight))
        self._margin = margin

    def begin(self, classes: float) -> None:
        """See Loss."""
        self.state["threshold"].fill_(math.log(10 * classes))

    def targets(self, angle: Tensor, margins: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Loss."""
        return angle.cos() - self._margin, torch.ones_like(angle)


class Spherical(Binary):
    """SphereFace2-C: T is g(cos t) - margin, z is s (g(cos t) + margin), with g(c) = 2 ((c + 1) / 2) ** power - 1; the terms of
    own and others weigh `weight` / s times `own` and 1 - `own`. b begins where the loss is least while all cosines are 0,
    as in the authors' code.
    """

    def __init__(self, settings: SphereFace2, scale: float, margin: float) -> None:
        share = settings.weight / scale
        super().__init__(scale, Weights(share * settings.own, share * (1 - settings.own)))
        self._margin, self._power, self._own = margin, settings.power, settings.own

    def begin(self, classes: float) -> None:
        """See Loss: there the derivative by b is 0, a quadratic in exp(-b)."""
        ratio = self._own / ((1 - self._own) * max(1.0, classes - 1))
        middle = 2 * 0.5**self._power - 1
        own, other = self.scale * (middle - self._margin), self.scale * (middle + self._margin)
        root = math.sqrt((1 - ratio) ** 2 + 4 * ratio * math.exp(own - other))
        self.state["threshold"].fill_(other + math.log(1 - ratio + root) - math.log(2 * ratio))

    def targets(self, angle: Tensor, margins: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Loss."""
        half = (angle / 2).cos().square()  # (cos t + 1) / 2
        return 2 * half**self._power - 1 - self._margin, self._power * half ** (self._power - 1)

    def raised(self, logits_: Tensor) -> Tensor:
        """See Binary."""
        half = (logits_ / self.scale).clamp_(-1, 1).add_(1).mul_(0.5)
        slope = self._power * half ** (self._power - 1)
        torch.pow(half, self._power, out=logits_)
        logits_.mul_(2).add_(self._margin - 1).mul_(self.scale)
        return slope
