"""One optimizer step of a chunk of rows: torch.optim's arithmetic, with nothing changed where a step is skipped.

Legend: c rows, D components. All work in place, on tensors of the type that is computed in.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, assert_never

import torch
from torch import Tensor

from partialfc.config import AdamWRule, RowRule, SgdRule, TeacherRule

NO_STEP = -1.0  # in place of a learning rate


@dataclass
class RowUpdate:
    """What one optimizer step of a chunk of rows works on."""

    weight: Tensor  # [c, D], updated
    gradient: Tensor  # [c, D], finite, overwritten
    moments: Sequence[Tensor]  # [c, D] each, updated
    lr: Tensor  # a scalar, 0 where `finite` is false
    finite: Tensor  # bool scalar: whether the step is taken
    count: Tensor | None  # [c, 1] int32 steps of each row, this one included; of an optimizer that counts


@dataclass(frozen=True)
class Constants:
    """Of an optimizer, for a kernel that takes its step; the other optimizer's are 0."""

    decay: float
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.0, 0.0)
    eps: float = 0.0


class RowOptimizer(ABC):
    """How rows step; states what it keeps, so that nobody asks which it is."""

    constants: Constants
    moments: tuple[str, ...] = ()  # names of the tensors [n, D] that are kept beside the centres
    counts = False  # whether it wants to know how many steps a row has taken
    by_gradient = True  # else rows follow a teacher, see `head.distillation`, and take no steps
    temporaries = 0  # tensors [c, D] that a step takes for itself

    @abstractmethod
    def step(self, rows: RowUpdate) -> None:
        """Take one step of a chunk of rows, in place."""

    def corrections(self, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What the first moment, and the root of the second, are divided by, of `dtype`, after `count` steps of each row.

        Only of an optimizer that counts.
        """
        raise NotImplementedError

    def transitions(self, learning_rates: Tensor) -> Tensor:
        """What steps without a gradient do to (weight, momentum), [t, 2, 2] float64; learning_rates [t], nan or NO_STEP:
        nothing.

        Only of an optimizer whose steps without a gradient are linear in the two.
        """
        raise NotImplementedError


class RowSgd(RowOptimizer):
    """torch.optim.SGD; without its momentum where moments are not kept."""

    def __init__(self, config: SgdRule, *, moments: bool) -> None:
        self._momentum = config.momentum if moments else 0.0
        self._nesterov = config.nesterov
        self.moments = ("momentum",) if self._momentum else ()
        self._decay = config.weight_decay
        self.constants = Constants(self._decay, self._momentum, self._nesterov)

    def step(self, rows: RowUpdate) -> None:
        """weight, momentum = one step of torch.optim.SGD, dampening 0; in place."""
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

    def transitions(self, learning_rates: Tensor) -> Tensor:
        """See RowOptimizer."""
        lr = learning_rates.double()
        decay, momentum = torch.full_like(lr, self._decay), torch.full_like(lr, self._momentum)
        through, passed = (1 + self._momentum, self._momentum) if self._nesterov else (1.0, 1.0)
        rows = [1 - lr * decay * through, -lr * momentum * passed, decay, momentum]
        identity = torch.eye(2, dtype=torch.float64, device=lr.device)
        stands = lr.isnan() | (lr == NO_STEP)
        return torch.where(stands[:, None, None], identity, torch.stack(rows, dim=1).view(-1, 2, 2))


class RowAdamW(RowOptimizer):
    """torch.optim.AdamW, its bias correction by the steps that the row itself has taken."""

    counts = True
    moments = ("first_moment", "second_moment")
    temporaries = 1

    def __init__(self, config: AdamWRule) -> None:
        self._betas, self._eps, self._decay = config.betas, config.eps, config.weight_decay
        self.constants = Constants(self._decay, betas=self._betas, eps=self._eps)

    def step(self, rows: RowUpdate) -> None:
        """weight, both moments = one step of torch.optim.AdamW; in place."""
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

    def corrections(self, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See RowOptimizer."""
        # Where a row has taken no step yet, and skips this one: 0 / tiny, not 0 / 0.
        tiny = torch.finfo(dtype).tiny
        bias, square = ((1 - beta ** count.double()).clamp_min(tiny).to(dtype) for beta in self._betas)
        return bias, square.sqrt()


class RowFollower(RowOptimizer):
    """Of rows that follow a teacher: nothing is kept beside them."""

    by_gradient = False
    constants = Constants(decay=0.0)

    def step(self, rows: RowUpdate) -> NoReturn:
        """Never called."""
        raise NotImplementedError


def row_optimizer(config: RowRule, *, moments: bool) -> RowOptimizer:
    """The optimizer of the rows that a recipe means. moments: whether they are kept."""
    match config:
        case SgdRule():
            return RowSgd(config, moments=moments)
        case AdamWRule():
            return RowAdamW(config)
        case TeacherRule():
            return RowFollower()
    assert_never(config)


def _where(finite: Tensor, factor: float, like: Tensor) -> Tensor:
    """`factor` as a scalar on the device, or 1 in a step that is skipped."""
    return torch.where(finite, torch.full((), factor, dtype=like.dtype, device=like.device), 1.0)
