"""AdaFace (arXiv 2204.00964): a margin that depends on the embedding's norm, a proxy of the image's quality."""

import math

import torch
from torch import Tensor
from typing_extensions import override

from partialfc.config import AdaFace
from partialfc.head.losses.base import MIN_SINE, LossInputs, LossState, MarginLoss, TargetLogit

_NORM_RANGE = 0.001, 100.0  # norms are clipped to it
_EPS = 1e-3  # added to the deviation of the norms; also the distance of the angle from 0 and pi


class AdaFaceLoss(MarginLoss):
    """Target logit `s (cos(t - m z) - m (1 + z))`, equations 6 and 7.

    z, from -1 to 1, is h times the number of standard deviations between the embedding's norm and the mean. Mean and
    deviation are running averages over the global batches. Norms have no gradient. An angle outside of eps to
    pi - eps is clipped and has no gradient either, as in the authors' code.
    """

    needs_norms = True

    def __init__(self, config: AdaFace, scale: float, margin: float) -> None:
        super().__init__(scale)
        self._margin, self._concentration, self._rate = margin, config.h, config.ema_rate
        self.state = {"norm_mean": torch.tensor(20.0), "norm_std": torch.tensor(100.0)}

    @override
    def next_state(self, inputs: LossInputs) -> LossState:
        assert inputs.norms is not None
        norms, count = inputs.norms.clamp(*_NORM_RANGE).double(), inputs.num_valid
        mean = torch.where(inputs.valid, norms, 0.0).sum() / count
        squares = torch.where(inputs.valid, (norms - mean).square(), 0.0).sum()
        batch = {"norm_mean": mean, "norm_std": (squares / (count - 1).clamp_min(1)).sqrt()}
        return {
            # one image has no deviation
            name: torch.where(count < 2, old, torch.lerp(old, batch[name].to(old.dtype), self._rate))
            for name, old in self.state.items()
        }

    @override
    def logit(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> Tensor:
        return self.logit_with_derivatives(angle, norm, draws).logit

    @override
    def logit_with_derivatives(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> TargetLogit:
        assert norm is not None
        deviations = (norm.detach().clamp(*_NORM_RANGE) - self.state["norm_mean"]) / (
            self.state["norm_std"] + _EPS
        )
        z = (deviations * self._concentration).clamp(-1, 1)
        moved = angle - self._margin * z
        clipped = moved.clamp(_EPS, math.pi - _EPS)
        slope = torch.where(clipped == moved, moved.sin() / angle.sin().clamp_min(MIN_SINE), 0.0)
        return TargetLogit(clipped.cos() - self._margin * (1 + z), slope, None)
