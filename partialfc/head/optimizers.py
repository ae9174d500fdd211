"""Optimizer steps of a chunk of rows: the arithmetic of torch.optim, in place, with a mask for skipped steps.

Shapes:
    c: rows in a chunk
    n: rows of this rank
    D: components
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, assert_never

import torch
from torch import Tensor
from typing_extensions import override

from partialfc.config import CenterAdamW, CenterSGD, CenterUpdate, FollowTeacher

NO_STEP = -1.0  # learning rate of a step that was not taken


@dataclass(frozen=True)
class RowUpdate:
    """Arguments of one optimizer step of a chunk of rows."""

    weight: Tensor  # [c, D], updated
    gradient: Tensor  # [c, D], finite, overwritten
    moments: Sequence[Tensor]  # [c, D] each, updated
    lr: Tensor  # scalar, 0 in a skipped step
    finite: Tensor  # bool scalar, False in a skipped step
    count: Tensor | None  # [c, 1] int32, steps of each row including this one; None without `counts`


@dataclass(frozen=True)
class OptimizerConstants:
    """Constants of an optimizer for a fused kernel; those of other optimizers are 0."""

    decay: float
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.0, 0.0)
    eps: float = 0.0


class RowOptimizer(ABC):
    """Update rule of rows.

    Attributes:
        constants: Constants for a fused kernel.
        moments: Names of the tensors `[n, D]` that are stored with the centers.
        counts: Count the steps of each row.
        by_gradient: Update by gradients; False if rows follow a teacher (`backward.follow_teacher`).
        temporaries: Number of temporary tensors `[c, D]` of a step.
    """

    constants: OptimizerConstants
    moments: tuple[str, ...] = ()
    counts = False
    by_gradient = True
    temporaries = 0

    @abstractmethod
    def step(self, rows: RowUpdate) -> None:
        """Update a chunk of rows in place."""

    def corrections(self, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the bias corrections of the first moment and of the root of the second, after `count` steps per row.

        Raises:
            NotImplementedError: The optimizer does not count steps.
        """
        raise NotImplementedError

    def transitions(self, learning_rates: Tensor) -> Tensor:
        """Return the matrices by which steps without a gradient multiply (weight, momentum), float64 `[t, 2, 2]`.

        Args:
            learning_rates: Learning rate of each step, `[t]`; NaN or NO_STEP give the identity.

        Raises:
            NotImplementedError: Steps without a gradient are not linear in (weight, momentum).
        """
        raise NotImplementedError


class RowSGD(RowOptimizer):
    """torch.optim.SGD with dampening 0; without momentum if moments are not stored."""

    def __init__(self, config: CenterSGD, *, moments: bool) -> None:
        self._momentum = config.momentum if moments else 0.0
        self._nesterov = config.nesterov
        self.moments = ("momentum",) if self._momentum else ()
        self._decay = config.weight_decay
        self.constants = OptimizerConstants(self._decay, self._momentum, self._nesterov)

    @override
    def step(self, rows: RowUpdate) -> None:
        weight, gradient, lr = rows.weight, rows.gradient, rows.lr
        gradient.add_(weight, alpha=self._decay)
        if not rows.moments:
            weight.addcmul_(gradient, -lr)
            return
        (momentum,) = rows.moments
        momentum.mul_(_where(rows.finite, self._momentum, weight)).add_(gradient.mul_(rows.finite))
        if self._nesterov:
            weight.addcmul_(gradient.add_(momentum, alpha=self._momentum), -lr)
        else:
            weight.addcmul_(momentum, -lr)

    @override
    def transitions(self, learning_rates: Tensor) -> Tensor:
        lr = learning_rates.double()
        decay, momentum = torch.full_like(lr, self._decay), torch.full_like(lr, self._momentum)
        through, passed = (1 + self._momentum, self._momentum) if self._nesterov else (1.0, 1.0)
        rows = [1 - lr * decay * through, -lr * momentum * passed, decay, momentum]
        identity = torch.eye(2, dtype=torch.float64, device=lr.device)
        stands = lr.isnan() | (lr == NO_STEP)
        return torch.where(stands[:, None, None], identity, torch.stack(rows, dim=1).view(-1, 2, 2))


class RowAdamW(RowOptimizer):
    """torch.optim.AdamW with a bias correction by the number of steps of the row."""

    counts = True
    moments = ("first_moment", "second_moment")
    temporaries = 1

    def __init__(self, config: CenterAdamW) -> None:
        self._betas, self._eps, self._decay = config.betas, config.eps, config.weight_decay
        self.constants = OptimizerConstants(self._decay, betas=self._betas, eps=self._eps)

    @override
    def step(self, rows: RowUpdate) -> None:
        weight, gradient, lr, finite, count = rows.weight, rows.gradient, rows.lr, rows.finite, rows.count
        assert count is not None
        first, second = rows.moments
        gradient.mul_(finite)
        kept = [_where(finite, beta, weight) for beta in self._betas]
        first.mul_(kept[0]).add_(gradient, alpha=1 - self._betas[0])
        second.mul_(kept[1]).addcmul_(gradient, gradient, value=1 - self._betas[1])
        bias, root = self.corrections(count, weight.dtype)
        denominator = torch.sqrt(second, out=gradient).div_(root).add_(self._eps)
        weight.mul_(1 - lr * self._decay)
        weight.addcdiv_(first * (-lr / bias), denominator)

    @override
    def corrections(self, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # 0 / tiny instead of 0 / 0 for a row that skips its first step
        tiny = torch.finfo(dtype).tiny
        bias, square = ((1 - beta ** count.double()).clamp_min(tiny).to(dtype) for beta in self._betas)
        return bias, square.sqrt()


class RowFollowTeacher(RowOptimizer):
    """Placeholder for rows that follow a teacher: no moments, no steps."""

    by_gradient = False
    constants = OptimizerConstants(decay=0.0)

    @override
    def step(self, rows: RowUpdate) -> NoReturn:
        raise NotImplementedError


def build_row_optimizer(config: CenterUpdate, *, moments: bool) -> RowOptimizer:
    """Return the optimizer of a recipe; `moments` is False if no momentum is stored."""
    match config:
        case CenterSGD():
            return RowSGD(config, moments=moments)
        case CenterAdamW():
            return RowAdamW(config)
        case FollowTeacher():
            return RowFollowTeacher()
    assert_never(config)


def _where(finite: Tensor, factor: float, like: Tensor) -> Tensor:
    """Return `factor` as a scalar on the device, or 1 in a skipped step."""
    return torch.where(finite, torch.full((), factor, dtype=like.dtype, device=like.device), 1.0)
