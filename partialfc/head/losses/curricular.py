"""CurricularFace (arXiv 2004.00288): ArcFace whose hard negatives weigh more and more as training goes on."""

import math

import torch

from partialfc.config import CurricularFace
from partialfc.head.losses.angular import Angular
from partialfc.head.losses.base import Batch, HardNegatives, State


class Curricular(Angular):
    """The target's logit / s is cos(t + m); that of a negative whose cosine c is above it is c (l + c).

    The level l begins at 0 and follows the mean target cosine of the global batches (some copies of the authors'
    code average all cosines). A step works with the level that has seen its own batch. Which negatives are hard has no
    gradient, as in the authors' code.
    """

    needs_cosines = True

    def __init__(self, settings: CurricularFace, scale: float, margin: float) -> None:
        super().__init__(settings, scale, m1=1.0, m2=margin, m3=0.0)
        self._margin, self._rate = margin, settings.rate
        self.max_logit = 2 * self.scale  # c (l + c), with both at most 1
        self.state = {"level": torch.tensor(0.0)}

    def next_state(self, batch: Batch) -> State:
        """See Loss: the level."""
        if not len(batch.valid_positions):
            return dict(self.state)
        assert batch.cosines is not None
        seen = batch.cosines.index_select(0, batch.valid_positions).double().mean()
        level = self.state["level"]
        return {"level": torch.lerp(level, seen.to(level.dtype), self._rate)}

    def hard_negatives(self, batch: Batch, state: State) -> HardNegatives:
        """See Loss."""
        cosine = batch.cosines
        assert cosine is not None
        sine = (1 - cosine * cosine).clamp_min(0).sqrt()
        target = cosine * math.cos(self._margin) - sine * math.sin(self._margin)
        return HardNegatives(target * self.scale, state["level"], self.scale)
