"""What every loss is: a margin that lowers the target's logit, so that its class has to be learnt by more."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

State = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """What a loss may know of the global batch of B images, V of them valid; on the device, the same on every rank."""

    valid_positions: Tensor  # [V] int64
    drawn: Tensor | None  # [B] what `draw` gave
    cosines: Tensor | None  # [B] of the images with their own classes' centres; for a loss that needs them
    norms: Tensor | None  # [B] of the embeddings; for a loss that needs them


class HardNegatives(NamedTuple):
    """Which logits of negatives a loss raises: a logit z = s c above `above` becomes s c (level + c)."""

    above: Tensor  # [B] of each image
    level: Tensor  # scalar
    scale: float  # s


class Loss(ABC):
    """A softmax loss with a margin: what becomes of the target's cosine. Nothing else asks which loss it is.

    scale: s, of every logit. Where a loss has a state, `state` holds it: tensors that are the same on every rank, and
    are saved. A loss with another target overrides `targets`, and what else it needs.
    """

    needs_cosines = False  # whether Batch.cosines is filled: one more collective, of [B]
    needs_norms = False  # whether Batch.norms is filled: they travel with the embeddings
    beside = 0  # components that `prepared` puts beside those of an embedding

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.max_logit = scale  # no logit is above it; decides whether exp(logit) fits as it is
        self.state: State = {}

    def begin(self, classes: float) -> None:
        """A run begins, whose steps work on so many classes: for a loss whose state depends on that."""
        return

    def draw(self, seed: int, step: int, batch: int) -> NDArray[np.float64] | None:
        """What is drawn for the global batch, float64 [B], keyed by (seed, step, position); None: nothing."""
        return None

    def prepared(self, embeddings: Tensor) -> Tensor:
        """What of embeddings [b, D] takes part: they, at length 1."""
        return normalize(embeddings)

    def norms_of(self, embeddings: Tensor) -> Tensor | None:
        """The norms [b] of this rank's embeddings [b, D], without gradient; None where the loss does not need them."""
        return torch.linalg.vector_norm(embeddings.detach(), dim=1) if self.needs_norms else None

    def next_state(self, batch: Batch) -> State:
        """The state with this batch seen; it is what `margins` works with, and is kept when the step is taken."""
        return {}

    def margins(self, batch: Batch, state: State) -> Tensor | None:
        """What each image's target works with, [B]; None where it is the same for all images."""
        return None

    def hard_negatives(self, batch: Batch, state: State) -> HardNegatives | None:
        """Which negatives count as hard; None: a negative's logit is s times its cosine."""
        return None

    @abstractmethod
    def targets(self, angle: Tensor, margins: Tensor | None) -> tuple[Tensor, Tensor]:
        """The target's logit / s, and its derivative by the cosine, both [N].

        angle [N]: in radians, between an embedding and its own class's centre; margins [N]: of the same images.
        """


class TrainsNorms(Loss):
    """A loss in which the norms of embeddings have gradient, too."""

    needs_norms = True

    def norms_of(self, embeddings: Tensor) -> Tensor:
        """The norms [b] of this rank's embeddings [b, D], with gradient."""
        return torch.linalg.vector_norm(embeddings, dim=1)

    @abstractmethod
    def by_norm(self, angle: Tensor, margins: Tensor | None, norms: Tensor) -> Tensor:
        """The derivative of the target's logit / s by the embedding's norm, [N]. angle, margins, norms: [N] of the same
        images.
        """

    @abstractmethod
    def penalty(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to an image's loss, and its derivative by the norm, in the shape of `norms`."""
