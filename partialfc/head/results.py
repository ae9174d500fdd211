"""What the passes of a step give to each other.

Legend: B images in the global batch, N of them with a class of this rank, S active classes on this rank, D width, s the scale.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from partialfc.head.losses import HardNegatives, Loss, State


@dataclass
class Softmax:
    """What a forward leaves for the rows' gradient.

    The loss's derivative by a negative's cosine is exp(z - shift) * factor, by a target's it is `targets`.
    """

    loss: Loss  # of the step
    embeddings: Tensor  # [B, D], at length 1
    scaled: Tensor  # [B, D], at length s, as a factor of logits
    shift: Tensor | None  # [B] taken off the logits before exp; None: 0
    factor: Tensor  # [B]
    targets: Tensor  # [N]
    exponentials: Tensor | None  # [S, B], where they are kept
    inverse: Tensor | None  # [S, 1] of the rows' lengths, where the exponentials are kept
    hard: HardNegatives | None  # whose logits are raised
    loss_state: State  # of the loss, once the step is taken

    def take_state(self, finite: Tensor) -> None:
        """The step is taken, where the bool scalar `finite` is true: the loss has seen its batch."""
        for name, value in self.loss_state.items():
            old = self.loss.state[name]
            old.copy_(torch.where(finite, value, old))


class Forward(NamedTuple):
    """What a forward gives."""

    loss: Tensor  # scalar
    gradient: Tensor  # [B, D] its gradient by the embeddings, from this rank's classes
    by_norm: Tensor | None  # [B] the same by their norms; None: they have none
    left: Softmax  # for the rows' gradient


class Targets(NamedTuple):
    """Of the N images of this rank's classes."""

    centers: Tensor  # [N, D] at length 1
    logit: Tensor  # [N] / s
    slopes: Tensor  # [k, N] its derivatives by the cosine, and by the norm where norms are trained
