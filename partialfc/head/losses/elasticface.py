"""ElasticFace and ElasticFace+ (arXiv 2109.09416): a margin drawn from a normal distribution for each image."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from partialfc.config import ElasticArcFace, ElasticCosFace, MarginOrder
from partialfc.head.losses.arcface import combined_margin
from partialfc.head.losses.base import LossInputs, MarginLoss, TargetLogit
from partialfc.runtime import counter_rng


class ElasticFaceLoss(MarginLoss):
    """Margins e ~ N(margin, sigma), assigned at random or by the target cosines of the global batch."""

    def __init__(self, config: ElasticArcFace | ElasticCosFace, scale: float, margin: float) -> None:
        super().__init__(scale)
        self._mean, self._sigma, self._order = margin, config.sigma, config.order
        self.needs_cosines = config.order != "none"

    @override
    def draw(self, seed: int, step: int, batch: int) -> NDArray[np.float64] | None:
        key = counter_rng.derive_key(seed, "margin", step)
        return self._mean + self._sigma * counter_rng.random_normal(key, np.arange(batch))

    @override
    def assign_draws(self, inputs: LossInputs) -> Tensor | None:
        assert inputs.draws is not None
        if inputs.cosines is None:
            return inputs.draws
        return assign_margins(inputs.draws, inputs.cosines, inputs.valid, self._order)


class ElasticArcFaceLoss(ElasticFaceLoss):
    """Target logit `s cos(t + e)`."""

    def __init__(self, config: ElasticArcFace, scale: float, margin: float) -> None:
        super().__init__(config, scale, margin)
        self._settings = config

    @override
    def logit(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> Tensor:
        return self.logit_with_derivatives(angle, norm, draws).logit

    @override
    def logit_with_derivatives(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> TargetLogit:
        assert draws is not None
        return combined_margin(self._settings, angle, m1=1.0, m2=draws, m3=0.0)


class ElasticCosFaceLoss(ElasticFaceLoss):
    """Target logit `s (cos t - e)`."""

    @override
    def logit(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> Tensor:
        assert draws is not None
        return angle.cos() - draws

    @override
    def logit_with_derivatives(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> TargetLogit:
        return TargetLogit(self.logit(angle, norm, draws), torch.ones_like(angle), None)


def assign_margins(draws: Tensor, cosines: Tensor, valid: Tensor, order: MarginOrder) -> Tensor:
    """Return the margin of each image, `[B]`, from the target cosines of the global batch.

    Args:
        draws: Margins in the order of their drawing, `[B]`.
        cosines: Cosine of each image with the center of its class, `[B]`.
        valid: Mask of the images that take part, `[B]`; the others keep their draws.
        order: "paper" gives the largest margin to the image farthest from its center (ElasticFace+, section 3.3);
            "released" applies the inverse permutation, as the authors' code does.
    """
    if order == "none":
        return draws
    # Invalid images come last.
    nearest_first = torch.where(valid, cosines, -torch.inf).argsort(descending=True, stable=True)
    ascending = torch.where(valid, draws, torch.inf).sort().values  # then not valid
    if order == "paper":
        return torch.where(valid, torch.empty_like(draws).scatter_(0, nearest_first, ascending), draws)
    valid_index = valid.cumsum(0) - 1  # index of each valid image among them
    rank = valid_index[nearest_first][valid_index.clamp_min(0)]
    return torch.where(valid, ascending[rank.clamp_min(0)], draws)
