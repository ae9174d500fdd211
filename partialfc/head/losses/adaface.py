"""AdaFace (arXiv 2204.00964): a margin that follows the embedding's norm, which stands for the image's quality."""

import math

import torch
from torch import Tensor

from partialfc.config import AdaFace
from partialfc.head.losses.angular import SMALLEST_SINE
from partialfc.head.losses.base import Batch, Loss, State

_NORMS = 0.001, 100.0  # norms are clipped to
_EPS = 1e-3  # beside the norms' deviation; and the angle stays as far from 0 and pi


class NormAdaptive(Loss):
    """The target's logit / s is cos(t - m z) - m (1 + z), equations 6 and 7.

    z, in -1 .. 1, is h times how many deviations the embedding's norm lies above the mean. Mean and deviation are running
    averages over the global batches; norms have no gradient. An angle that leaves eps .. pi - eps is clipped to it, and
    has no gradient either, as in the authors' code.
    """

    needs_norms = True

    def __init__(self, settings: AdaFace, scale: float, margin: float) -> None:
        super().__init__(scale)
        self._margin, self._concentration, self._rate = margin, settings.h, settings.rate
        self.state = {"norm_mean": torch.tensor(20.0), "norm_std": torch.tensor(100.0)}

    def next_state(self, batch: Batch) -> State:
        """See Loss: the running mean and deviation."""
        if len(batch.valid_positions) < 2:  # one image has no deviation
            return dict(self.state)
        norms = _clipped_norms(batch).index_select(0, batch.valid_positions).double()
        seen = {"norm_mean": norms.mean(), "norm_std": norms.std()}
        return {
            name: torch.lerp(old, seen[name].to(old.dtype), self._rate) for name, old in self.state.items()
        }

    def margins(self, batch: Batch, state: State) -> Tensor | None:
        """See Loss: z of every image."""
        deviations = (_clipped_norms(batch) - state["norm_mean"]) / (state["norm_std"] + _EPS)
        return (deviations * self._concentration).clamp(-1, 1)

    def targets(self, angle: Tensor, margins: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Loss."""
        assert margins is not None
        moved = angle - self._margin * margins
        clipped = moved.clamp(_EPS, math.pi - _EPS)
        slope = torch.where(clipped == moved, moved.sin() / angle.sin().clamp_min(SMALLEST_SINE), 0.0)
        return clipped.cos() - self._margin * (1 + margins), slope


def _clipped_norms(batch: Batch) -> Tensor:
    assert batch.norms is not None
    return batch.norms.clamp(*_NORMS)
