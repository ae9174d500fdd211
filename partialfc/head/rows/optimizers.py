"""One optimizer step of a chunk of rows: torch.optim's arithmetic, with nothing changed where a step is skipped.

Legend: c rows, D components. All work in place, on tensors of the type that is computed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from partialfc.config import AdamW, AnyOptimizer, Sgd


@dataclass
class RowStep:
    """What one step of a chunk of rows works on."""

    weight: Tensor  # [c, D], updated
    gradient: Tensor  # [c, D], finite, overwritten
    moments: Sequence[Tensor]  # [c, D] each, updated
    rate: Tensor  # a scalar, 0 where `finite` is false
    finite: Tensor  # bool scalar: whether the step is taken
    count: Tensor | None  # [c, 1] int32 steps of each row, this one included; of an optimizer that counts


class RowSgd:
    """torch.optim.SGD; without its momentum where moments are not kept."""

    counts = False  # whether it wants to know how many steps a row has taken

    def __init__(self, config: Sgd, *, moments: bool) -> None:
        self._inertia = config.momentum if moments else 0.0
        self._nesterov = config.nesterov
        self.moments = ("momentum",) if self._inertia else ()  # tensors [n, D] kept beside the centres
        self._decay = config.weight_decay

    def step(self, rows: RowStep) -> None:
        """weight, momentum = one step of torch.optim.SGD, dampening 0; in place."""
        weight, gradient, rate = rows.weight, rows.gradient, rows.rate
        gradient.add_(weight, alpha=self._decay)
        if not rows.moments:
            weight.addcmul_(gradient, -rate)
            return
        (momentum,) = rows.moments
        momentum.mul_(_where(rows.finite, self._inertia, weight)).add_(gradient.mul_(rows.finite))
        if self._nesterov:
            weight.addcmul_(gradient.add_(momentum, alpha=self._inertia), -rate)
        else:
            weight.addcmul_(momentum, -rate)

    def transition(self, rate: Tensor, finite: Tensor) -> Tensor:
        """What a step without a gradient does to (weight, momentum): [2, 2] float64."""
        one, rate = torch.ones_like(rate, dtype=torch.float64), rate.double()
        decay, inertia = self._decay * one, self._inertia * one
        through, passed = (1 + self._inertia, self._inertia) if self._nesterov else (1.0, 1.0)
        rows = [1 - rate * decay * through, -rate * inertia * passed, decay, inertia]
        identity = torch.eye(2, dtype=torch.float64, device=rate.device)
        return torch.where(finite, torch.stack(rows).view(2, 2), identity)


class RowAdamW:
    """torch.optim.AdamW, its bias correction by the steps that the row itself has taken."""

    counts = True
    moments = ("first_moment", "second_moment")

    def __init__(self, config: AdamW) -> None:
        self._betas, self._eps, self._decay = config.betas, config.eps, config.weight_decay

    def step(self, rows: RowStep) -> None:
        """weight, both moments = one step of torch.optim.AdamW; in place."""
        weight, gradient, rate, finite, count = rows.weight, rows.gradient, rows.rate, rows.finite, rows.count
        assert count is not None
        first, second = rows.moments
        gradient.mul_(finite)
        kept = [_where(finite, beta, weight) for beta in self._betas]
        first.mul_(kept[0]).add_(gradient, alpha=1 - self._betas[0])
        second.mul_(kept[1]).addcmul_(gradient, gradient, value=1 - self._betas[1])
        # Where a row has taken no step yet, and skips this one: 0 / tiny, not 0 / 0.
        tiny = torch.finfo(weight.dtype).tiny
        bias, square = ((1 - beta ** count.double()).clamp_min(tiny).to(weight.dtype) for beta in self._betas)
        denominator = torch.sqrt(second, out=gradient).div_(square.sqrt()).add_(self._eps)
        weight.mul_(1 - rate * self._decay)
        weight.addcdiv_(first * (-rate / bias), denominator)


def row_optimizer(config: AnyOptimizer, *, moments: bool) -> RowSgd | RowAdamW:
    """The rows' part of a recipe's optimizer."""
    return RowSgd(config, moments=moments) if isinstance(config, Sgd) else RowAdamW(config)


def _where(finite: Tensor, factor: float, like: Tensor) -> Tensor:
    """`factor` as a scalar on the device, or 1 in a step that is skipped."""
    return torch.where(finite, torch.full((), factor, dtype=like.dtype, device=like.device), 1.0)
