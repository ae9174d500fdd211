"""The class centres that a rank owns, and their optimizer rows.

Legend: n classes of this rank, S of them at work in a step, D embedding width.
"""

import numpy as np
import torch
from torch import Tensor

from partialfc.runtime import randomness

INITIAL_STD = 0.01  # of a centre's components
_BLOCK = 4096  # classes drawn together; part of the definition of the initial centres


def initial_centers(seed: int, owned: range, width: int, dtype: torch.dtype) -> Tensor:
    """Centres [n, D] of the classes `owned`, drawn in fixed blocks keyed by (seed, block): the same for any
    sharding.
    """
    rows = torch.empty(len(owned), width, dtype=dtype)
    for block in range(owned.start // _BLOCK, -(-owned.stop // _BLOCK) if owned else 0):
        generator = np.random.Generator(np.random.Philox(key=randomness.key(seed, "centers", block)))
        drawn = generator.standard_normal((_BLOCK, width), np.float32) * np.float32(INITIAL_STD)
        begin, end = max(owned.start, block * _BLOCK), min(owned.stop, (block + 1) * _BLOCK)
        part = torch.from_numpy(drawn[begin - block * _BLOCK : end - block * _BLOCK])
        rows[begin - owned.start : end - owned.start] = part
    return rows


class Centers:
    """Rows of this rank: `weight` and `momentum`, both [n, D] on `device`.

    The optimizer is SGD with momentum as torch.optim.SGD has it, on the rows at work; the others stand still.
    """

    def __init__(
        self,
        owned: range,
        width: int,
        *,
        seed: int,
        momentum: float,
        weight_decay: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.owned = owned
        self.weight = initial_centers(seed, owned, width, dtype).to(device)
        self.momentum = torch.zeros_like(self.weight)
        self._inertia = momentum
        self._weight_decay = weight_decay

    def unit_rows(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """The rows [S] (None: all) scaled to length 1, [S, D], and their lengths [S, 1]."""
        raw = self.weight if rows is None else self.weight.index_select(0, rows)
        lengths = torch.linalg.vector_norm(raw, dim=1, keepdim=True).clamp_min(torch.finfo(raw.dtype).tiny)
        return raw / lengths, lengths

    def update(
        self, rows: Tensor | None, unit: Tensor, lengths: Tensor, d_unit: Tensor, rate: float, finite: Tensor
    ) -> None:
        """One SGD step of the rows, given the loss's gradient [S, D] by the unit rows; none where `finite`
        is false.

        unit and lengths are what `unit_rows(rows)` gave. d_unit is overwritten.
        """
        weight, momentum = (
            whole if rows is None else whole.index_select(0, rows) for whole in (self.weight, self.momentum)
        )
        # Scaling to length 1 lets through only what is at right angles to the row.
        radial = torch.linalg.vecdot(d_unit, unit).unsqueeze(1)
        gradient = (
            d_unit.addcmul_(unit, radial, value=-1).div_(lengths).add_(weight, alpha=self._weight_decay)
        )
        new_momentum = torch.where(finite, momentum * self._inertia + gradient, momentum)
        new_weight = torch.where(finite, weight - rate * new_momentum, weight)
        for whole, new in ((self.momentum, new_momentum), (self.weight, new_weight)):
            whole.copy_(new) if rows is None else whole.index_copy_(0, rows, new)
