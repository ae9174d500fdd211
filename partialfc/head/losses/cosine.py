"""CosFace (arXiv 1801.09414): a margin on the cosine; 0 is the plain softmax of normalised vectors."""

import torch
from torch import Tensor

from partialfc.head.losses.base import Loss


class Cosine(Loss):
    """The target's logit / s is cos t - margin."""

    def __init__(self, scale: float, margin: float) -> None:
        super().__init__(scale)
        self._margin = margin

    def targets(self, angle: Tensor, margins: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Loss."""
        return angle.cos() - self._margin, torch.ones_like(angle)
