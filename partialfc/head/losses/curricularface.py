"""CurricularFace (arXiv 2004.00288): ArcFace with weights of hard negatives that grow during training."""

import math

import torch
from typing_extensions import override

from partialfc.config import CurricularFace
from partialfc.head.losses.arcface import ArcFaceLoss
from partialfc.head.losses.base import HardNegativeRule, LossInputs, LossState


class CurricularFaceLoss(ArcFaceLoss):
    """Target logit `s cos(t + m)`; a negative with a cosine c above it gets `s c (l + c)`.

    The level l starts at 0 and follows the mean target cosine of the global batches. Some copies of the authors' code
    average all cosines. A step uses the level that includes its own batch. The selection of hard negatives has no
    gradient, as in the authors' code.
    """

    needs_cosines = True

    def __init__(self, config: CurricularFace, scale: float, margin: float) -> None:
        super().__init__(config, scale, margin)
        self._margin, self._rate = margin, config.ema_rate
        self.max_logit = 2 * self.scale  # c (l + c), both at most 1
        self.state = {"level": torch.tensor(0.0)}

    @override
    def next_state(self, inputs: LossInputs) -> LossState:
        assert inputs.cosines is not None
        level = self.state["level"]
        # float64: the sum does not depend on the order of the images or the number of ranks
        mean = torch.where(inputs.valid, inputs.cosines, 0.0).double().sum() / inputs.num_valid
        next_level = torch.lerp(level, mean.to(level.dtype), self._rate)
        return {"level": torch.where(inputs.valid.any(), next_level, level)}

    @override
    def hard_negative_rule(self, inputs: LossInputs) -> HardNegativeRule:
        cosine = inputs.cosines
        assert cosine is not None
        sine = (1 - cosine * cosine).clamp_min(0).sqrt()
        target = cosine * math.cos(self._margin) - sine * math.sin(self._margin)
        return HardNegativeRule(target * self.scale, self.state["level"], self.scale)
