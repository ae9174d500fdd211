"""Softmax of a linear layer `w x + b`: the baseline without normalization and margin."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from partialfc.head.losses.base import MarginLoss, TargetLogit


class LinearSoftmaxLoss(MarginLoss):
    """Logits `w x + b` without a bound. The last component of a center is its bias; that of a feature is 1."""

    objective = "linear"
    on_sphere = False
    extra_columns = 1

    def __init__(self) -> None:
        super().__init__(scale=1.0)
        self.max_logit = math.inf

    @override
    def features(self, embeddings: Tensor) -> Tensor:
        return torch.cat([embeddings, embeddings.new_ones(len(embeddings), 1)], dim=1)

    @override
    def directions(self, vectors: Tensor) -> Tensor:
        return normalize(vectors[:, :-1])

    @override
    def logit(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> Tensor:
        """Return `angle`, which is the logit itself for vectors that are not normalized."""
        return angle

    @override
    def logit_with_derivatives(self, angle: Tensor, norm: Tensor | None, draws: Tensor | None) -> TargetLogit:
        """Return `angle` and 1, the derivative by the logit itself."""
        return TargetLogit(angle, torch.ones_like(angle), None)
