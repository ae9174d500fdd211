"""The contract of a loss: a margin that lowers the logit of each image's own class.

Shapes:
    B: images in the global batch
    b: images of this rank
    c: classes in a chunk
    D: components of an embedding
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

MIN_SINE = 2.0**-14  # smallest sin t in a derivative by cos t; embedding gradients are exact down to t = 1e-4

LossState = dict[str, Tensor]
Objective = Literal["softmax", "linear", "sigmoid"]  # function of `head.forward` that computes the loss


@dataclass(frozen=True)
class LossInputs:
    """Properties of the global batch that a loss may use, on the device and equal on all ranks."""

    valid: Tensor  # [B] bool, False for images with the label -1
    num_valid: Tensor  # float64 scalar, at least 1
    draws: Tensor | None  # [B], the values of `MarginLoss.draw`
    cosines: Tensor | None  # [B], cosines with the centers of the own classes; None without `needs_cosines`
    norms: Tensor | None  # [B], norms of the embeddings; None without `needs_norms`


class TargetLogit(NamedTuple):
    """Logit of the target class divided by `scale`, and its derivatives, `[B]` each."""

    logit: Tensor
    by_cosine: Tensor
    by_norm: Tensor | None  # None without `has_norm_gradient`


class HardNegativeRule(NamedTuple):
    """Rule that raises the logits of hard negatives: `s c` above `logit_threshold` becomes `s c (level + c)`."""

    logit_threshold: Tensor  # [B]
    level: Tensor  # scalar
    scale: float  # s


class MarginLoss(ABC):
    """Loss of one step, with a margin on the target logit.

    A subclass implements `logit`. The head reads the attributes and calls the methods below; it never asks which
    subclass it has.

    Derivatives: `logit_with_derivatives` differentiates `logit` by the angle and divides by `sin t`, which it clamps
    to `MIN_SINE`. A subclass therefore need not treat angles near 0 and pi, as long as its derivative by the angle is
    finite there. A subclass that overrides the method with a formula clamps in the same way.

    Attributes:
        scale: Factor s of every cosine.
        max_logit: Upper bound of the logits of targets and negatives. The softmax subtracts no maximum up to 64, so
            that a logit above this bound may overflow.
        state: Tensors that a step changes. They are saved and equal on all ranks.
        objective: Objective function that the loss belongs to.
        needs_cosines: Request `LossInputs.cosines`, at the cost of an all-reduce of `[B]`.
        needs_norms: Request `LossInputs.norms`, which are gathered with the embeddings.
        has_norm_gradient: Propagate gradients to the norms of the embeddings.
        on_sphere: Normalize embeddings and centers.
        extra_columns: Number of columns that `features` appends to the embeddings.
    """

    objective: ClassVar[Objective] = "softmax"
    needs_cosines: bool = False
    needs_norms: ClassVar[bool] = False
    has_norm_gradient: ClassVar[bool] = False
    on_sphere: ClassVar[bool] = True
    extra_columns: ClassVar[int] = 0

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.max_logit = scale
        self.state: LossState = {}

    @abstractmethod
    def logit(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> Tensor:
        """Return the logit of the target class divided by `scale`, `[B]`.

        Args:
            angle: Angle between an embedding and the center of its class, in radians, `[B]`.
            norm: Norm of the embedding, `[B]`; None without `needs_norms`.
            draws: Values of `assign_draws`, `[B]`.
        """

    def logit_with_derivatives(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> TargetLogit:
        """Return `logit` with its derivatives by the cosine and by the norm, computed by autograd."""
        with torch.enable_grad():
            inputs = [angle.detach().requires_grad_()]
            if norm is not None:
                norm = norm.detach().requires_grad_(self.has_norm_gradient)
                inputs += [norm] * self.has_norm_gradient
            logit = self.logit(inputs[0], norm, draws)
            by_angle, *by_norm = torch.autograd.grad(logit.sum(), inputs, materialize_grads=True)
        by_cosine = -by_angle / angle.sin().clamp_min(MIN_SINE)
        return TargetLogit(logit.detach(), by_cosine, by_norm[0] if by_norm else None)

    def init_state(self, num_classes: float) -> None:
        """Initialize the state for steps with `num_classes` active classes."""
        return

    def draw(self, seed: int, step: int, batch: int) -> NDArray[np.float64] | None:
        """Return random numbers `[B]` for the global batch, keyed by (seed, step, position), or None."""
        return None

    def assign_draws(self, inputs: LossInputs) -> Tensor | None:
        """Return the draw of each image, `[B]`."""
        return inputs.draws

    def features(self, embeddings: Tensor) -> Tensor:
        """Return the vectors that are multiplied by the centers, from embeddings `[b, D]`."""
        return normalize(embeddings)

    def directions(self, vectors: Tensor) -> Tensor:
        """Return normalized features or centers, for cosines."""
        return normalize(vectors)

    def norms(self, embeddings: Tensor) -> Tensor | None:
        """Return the norms of embeddings `[b, D]`, or None without `needs_norms`."""
        if not self.needs_norms:
            return None
        return torch.linalg.vector_norm(embeddings if self.has_norm_gradient else embeddings.detach(), dim=1)

    def next_state(self, inputs: LossInputs) -> LossState:
        """Return the entries of the state that the batch changes."""
        return {}

    def with_state(self, state: LossState) -> Self:
        """Return a copy whose state has the entries of `state`."""
        loss = copy.copy(self)
        loss.state = self.state | state
        return loss

    def hard_negative_rule(self, inputs: LossInputs) -> HardNegativeRule | None:
        """Return the rule for hard negatives, or None if all logits of negatives are `s cos t`."""
        return None

    def norm_penalty(self, norms: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return a term of the loss for each image and its derivative by the norm, `[B]` each, or None."""
        return None
