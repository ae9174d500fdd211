"""The class centres that a rank owns, and their optimizer rows.

Legend: n classes of this rank, c of them in a chunk, D embedding width.
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


class Buffers:
    """Memory that is used again in every step: fresh memory costs more than what is written to it."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor with undefined content; what was taken before under this name is lost."""
        size = int(np.prod(shape))
        if name not in self._kept or self._kept[name].numel() < size:
            self._kept.pop(name, None)
            # An eighth more: the number of classes at work changes a little from step to step.
            self._kept[name] = torch.empty(size + size // 8, device=self._device, dtype=self._dtype)
        return self._kept[name][:size].view(shape)


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
        self.momentum.fill_(0)  # touches the memory now: a page's first use would slow the first steps
        self._inertia, self._weight_decay = momentum, weight_decay
        self._buffers = Buffers(device, dtype)

    def read(self, rows: Tensor | None, chunk: slice) -> Tensor:
        """Centres [c, D] of rows[chunk] (None: of all rows), to be read only, until the next call."""
        return self._read(self.weight, "weight", rows, chunk)

    def update(
        self, rows: Tensor | None, chunk: slice, d_unit: Tensor, inverse: Tensor, rate: Tensor, finite: Tensor
    ) -> None:
        """One SGD step of rows[chunk]; none where `finite` is false.

        d_unit [c, D]: the loss's gradient by the centres at length 1, finite, and overwritten; inverse [c, 1]:
        1 / their lengths; rate: a scalar, 0 where `finite` is false.
        """
        weight = self._read(self.weight, "weight", rows, chunk)
        momentum = self._read(self.momentum, "momentum", rows, chunk)
        # Scaling to length 1 lets through only what is at right angles to the row.
        radial = torch.linalg.vecdot(d_unit, weight).unsqueeze(1).mul_(inverse * inverse).neg_()
        gradient = d_unit.addcmul_(weight, radial).mul_(inverse).add_(weight, alpha=self._weight_decay)
        inertia = torch.full((), self._inertia, dtype=weight.dtype, device=weight.device)
        momentum.mul_(torch.where(finite, inertia, 1.0)).add_(gradient.mul_(finite))
        weight.addcmul_(momentum, -rate)
        if rows is not None:  # else both were views
            self.weight.index_copy_(0, rows[chunk], weight)
            self.momentum.index_copy_(0, rows[chunk], momentum)

    def _read(self, whole: Tensor, name: str, rows: Tensor | None, chunk: slice) -> Tensor:
        if rows is None:
            return whole[chunk]
        index = rows[chunk]
        return torch.index_select(whole, 0, index, out=self._buffers.take(name, len(index), whole.shape[1]))
