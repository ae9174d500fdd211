"""Base of the losses that score each class by itself with a sigmoid and one learned threshold."""

from typing import NamedTuple

import torch
from torch import Tensor

from partialfc.head.losses.base import MarginLoss


class TermWeights(NamedTuple):
    """Weights of the terms of an image's loss."""

    positive: float
    negative: float  # of each negative


class SigmoidLoss(MarginLoss):
    """Sum of `positive * softplus(b - z_target)` and of `negative * softplus(z - b)` for each negative.

    `logit` gives `z_target / s`, and `transform_` gives z of the negatives. The threshold b is part of the state. It
    learns by plain gradient steps with the learning rate of the centers. Sampled negatives are not reweighted, except
    with `logit_correction: log_q`.
    """

    objective = "sigmoid"

    def __init__(self, scale: float, weights: TermWeights) -> None:
        super().__init__(scale)
        self.weights = weights
        self.state = {"threshold": torch.tensor(0.0)}

    def transform_(self, logits_: Tensor) -> Tensor | None:
        """Replace the logits s cos t of negatives by z, in place.

        Returns:
            The derivative dz / d(s cos t), or None if it is 1.
        """
        return None
