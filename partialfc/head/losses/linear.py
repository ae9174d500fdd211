"""The softmax of a linear layer, w x + b: what a margin-based loss is held against."""

import math

import torch
from torch import Tensor

from partialfc.head.losses.base import Loss


class LinearLayer(Loss):
    """The bias b is the last component of a row, beside the weights w; that of an embedding is 1. Logits know no bound."""

    beside = 1

    def __init__(self) -> None:
        super().__init__(scale=1.0)
        self.max_logit = math.inf

    def prepared(self, embeddings: Tensor) -> Tensor:
        """See Loss: as they are, and 1 beside them."""
        return torch.cat([embeddings, embeddings.new_ones(len(embeddings), 1)], dim=1)

    def targets(self, angle: Tensor, margins: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Loss. angle: here it is the logit itself, and the derivative is by it."""
        return angle, torch.ones_like(angle)
