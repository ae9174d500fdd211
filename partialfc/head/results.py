"""What the passes of a step give to each other.

Legend: B images in the global batch, N of them with a class of this rank, S active classes on this rank, K centres of each, D width, s the
scale.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from partialfc.head.chunk import Places
from partialfc.head.losses import HardNegatives, Loss, State


class Part(NamedTuple):
    """What is known of a chunk of classes beside their rows."""

    places: Places  # of its targets among its logits [c, B]
    correction: Tensor | None  # [c] added to its logits


class Kept(NamedTuple):
    """What is kept of the active classes, where there is room for it."""

    weights: Tensor  # [S, B] what images push classes away with
    winners: Tensor | None  # [S, B] uint8, which of a class's centres is an image's nearest; None: it has one
    inverse: Tensor  # [S K, 1] of the centres' lengths

    def of(self, chunk: slice) -> "Kept":
        """The same of a part of the classes."""
        centers = len(self.inverse) // len(self.weights)
        winners = None if self.winners is None else self.winners[chunk]
        inverse = self.inverse[chunk.start * centers : chunk.stop * centers]
        return Kept(self.weights[chunk], winners, inverse)


@dataclass
class Forwarded:
    """What a forward leaves for the rows' gradient.

    The loss's derivative by a negative's cosine is its weight, see Kept, times factor; by a target's it is `targets`.
    """

    loss: Loss  # of the step
    embeddings: Tensor  # [B, D], at length 1
    scaled: Tensor  # [B, D], at length s, as a factor of logits
    shift: Tensor | None  # [B] taken off the logits before exp; None: 0
    factor: Tensor  # [B]
    targets: Tensor  # [N]
    target_slots: Tensor  # [N] of the targets' centres among the S K
    kept: Kept | None
    hard: HardNegatives | None  # whose logits are raised
    loss_state: State  # of the loss, once the step is taken
    by_threshold: Tensor | None = None  # the loss's derivative by its threshold, the same on every rank


class Forward(NamedTuple):
    """What a forward gives."""

    loss: Tensor  # scalar
    gradient: Tensor  # [B, D] its gradient by the embeddings, from this rank's classes
    by_norm: Tensor | None  # [B] the same by their norms; None: they have none
    left: Forwarded  # for the rows' gradient


class Targets(NamedTuple):
    """Of the N images of this rank's classes."""

    centers: Tensor  # [N, D] at length 1, the nearest ones of their classes
    logit: Tensor  # [N] / s
    slopes: Tensor  # [k, N] its derivatives by the cosine, and by the norm where norms are trained
