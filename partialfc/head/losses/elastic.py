"""ElasticFace and ElasticFace+ (arXiv 2109.09416): margins drawn from a normal distribution, one for each image."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.config import ElasticArcFace, ElasticCosFace, Order
from partialfc.head.losses.angular import angular_targets
from partialfc.head.losses.base import Batch, Loss, State
from partialfc.runtime import randomness


class Elastic(Loss):
    """Margins e ~ N(margin, sigma), maybe in an order: an order needs the whole batch's target cosines."""

    def __init__(self, settings: ElasticArcFace | ElasticCosFace, scale: float, margin: float) -> None:
        super().__init__(scale)
        self._mean, self._sigma, self._order = margin, settings.sigma, settings.order
        self.needs_cosines = settings.order != "none"

    def draw(self, seed: int, step: int, batch: int) -> NDArray[np.float64] | None:
        """See Loss."""
        key = randomness.key(seed, "margin", step)
        return self._mean + self._sigma * randomness.normal(key, np.arange(batch))

    def margins(self, batch: Batch, state: State) -> Tensor | None:
        """See Loss: each image's margin."""
        drawn, valid = batch.drawn, batch.valid_positions
        assert drawn is not None
        if batch.cosines is None:
            return drawn
        return drawn.index_copy(0, valid, assign(drawn[valid], batch.cosines[valid], self._order))


class ElasticAngular(Elastic):
    """The target's logit / s is cos(t + e)."""

    def __init__(self, settings: ElasticArcFace, scale: float, margin: float) -> None:
        super().__init__(settings, scale, margin)
        self._settings = settings

    def targets(self, angle: Tensor, margins: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Loss."""
        assert margins is not None
        return angular_targets(self._settings, angle, m1=1.0, m2=margins, m3=0.0)


class ElasticCosine(Elastic):
    """The target's logit / s is cos t - e."""

    def targets(self, angle: Tensor, margins: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Loss."""
        assert margins is not None
        return angle.cos() - margins, torch.ones_like(angle)


def assign(drawn: Tensor, cosine: Tensor, order: Order) -> Tensor:
    """Which image gets which of the drawn margins [V], given all target cosines [V] of the global batch.

    paper: the image farthest from its centre gets the largest (ElasticFace+, arXiv 2109.09416, section 3.3).
    released: the permutation that the authors' code applies, the inverse of the paper's.
    """
    if order == "none":
        return drawn
    nearest_first = cosine.argsort(descending=True, stable=True)
    ascending = drawn.sort().values
    if order == "released":
        return ascending[nearest_first]
    return torch.empty_like(drawn).scatter_(0, nearest_first, ascending)
