"""The rows that one step works on: read chunk by chunk, and updated chunk by chunk.

Legend: S active rows, one for each class, c of them in a chunk, K centres of a class side by side in its row, N targets, D
embedding width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from partialfc.head.active import ActiveClasses
from partialfc.head.chunk import angles, unit_rows, where_finite
from partialfc.head.products import Products
from partialfc.head.rows import rounding
from partialfc.head.rows.optimizers import RowOptimizer, RowUpdate
from partialfc.head.scratch import ScratchMemory

CENTERS = "centers"  # the name of their tensor, beside those of their moments


@dataclass(frozen=True)
class Storage:
    """What the rows of all steps have in common."""

    optimizer: RowOptimizer
    width: int  # of a row, K D
    subcenters: int  # K
    dtype: torch.dtype  # that is computed in
    counts: Tensor  # [n] int32 steps that each row has taken; empty where the optimizer does not count
    rounding_columns: dict[str, Tensor]  # [D] int32, of each tensor that is stored in bfloat16
    products: Products
    scratch: ScratchMemory


class UnitRows(NamedTuple):
    """Centres [c K, D] of a chunk at length 1, as factors; both the same tensor where the types are."""

    for_logits: Tensor
    for_sums: Tensor  # that are weighted with exponentials


class ActiveRows:
    """The active rows of one step: centres and moments.

    tensors: [n, K D] each, or [S, K D] where they were brought to the device; index: [S] which of their rows, None: all;
    classes: on the device; factors: [S, 2, 2] of weight and momentum, by the steps that a row has missed.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        index: Tensor | None,
        classes: ActiveClasses,
        factors: Tensor | None,
        storage: Storage,
    ) -> None:
        self._tensors, self._index, self.classes, self._factors = tensors, index, classes, factors
        self._storage = storage
        stored = tensors[CENTERS].dtype == storage.dtype
        # Whether what read_chunk gives may be written to.
        self._read_copies = index is not None or factors is not None or not stored
        self.num_active = len(tensors[CENTERS] if index is None else index)  # S

    def read_chunk(self, chunk: slice) -> Tensor:
        """Centres [c K, D] of a chunk, until the next call; to be read only."""
        weight = self._load(CENTERS, chunk)
        if self._factors is not None:
            weight, _ = self._caught_up(weight, self._moments(chunk), chunk)
        return self._each(weight)

    def unit_chunk(self, chunk: slice, *, inverse_: Tensor) -> UnitRows:
        """Centres [c K, D] of a chunk at length 1, until the next call; `inverse_` [c K, 1] is filled with 1 / their lengths."""
        weight, products, rows = self.read_chunk(chunk), self._storage.products, chunk.stop - chunk.start
        memory = weight if self._read_copies else self._each(self._scratch("unit", rows, weight.dtype))
        unit = unit_rows(weight, out=memory, inverse_=inverse_)
        return UnitRows(
            *(self._as_factor(unit, kind) for kind in (products.of_logits, products.of_exponentials))
        )

    def _as_factor(self, unit: Tensor, kind: torch.dtype) -> Tensor:
        if unit.dtype == kind:
            return unit
        rows = len(unit) // self._storage.subcenters
        return self._each(self._scratch(f"unit {kind}", rows, kind)).copy_(unit)

    def target_angles(
        self, slots: Tensor, embeddings: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the classes at `slots` the centres [N, D] that are nearest to the embeddings [B, D] at `positions`, at length 1;
        the angles [N] between the two, in radians; and where these centres stand among the S K.
        """
        own = embeddings.index_select(0, positions)
        centers = torch.nn.functional.normalize(self._each(self.gather_targets(slots)))
        if (each := self._storage.subcenters) > 1:
            nearest = torch.linalg.vecdot(centers.unflatten(0, (len(own), each)), own[:, None]).argmax(dim=1)
            centers = centers.index_select(0, torch.arange(len(own), device=own.device) * each + nearest)
            slots = slots * each + nearest
        return centers, angles(own, centers), slots

    def gather_targets(self, slots: Tensor) -> Tensor:
        """Rows [N, K D] that stand at `slots`, a copy."""
        index = slots if self._index is None else self._index.index_select(0, slots)
        weight = self._tensors[CENTERS].index_select(0, index).to(self._storage.dtype)
        if self._factors is None:
            return weight
        factors = self._factors.index_select(0, slots)
        weight = weight * factors[:, 0, 0, None]
        for momentum in (self._tensors[name] for name in self._storage.optimizer.moments):
            weight.addcmul_(momentum.index_select(0, index).to(self._storage.dtype), factors[:, 0, 1, None])
        return weight

    def write_targets(self, slots: Tensor, values: Tensor) -> None:
        """Put other centres [N, D] where they stand at `slots`; those of one class are equal. Only of rows that have missed
        nothing.
        """
        assert self._factors is None
        noise = None if self.classes.noise is None else self.classes.noise.index_select(0, slots)
        index = slots if self._index is None else self._index.index_select(0, slots)
        self._tensors[CENTERS].index_copy_(0, index, self._rounded(CENTERS, values, noise))

    def update_chunk(self, chunk: slice, d_unit: Tensor, inverse: Tensor, lr: Tensor, finite: Tensor) -> None:
        """Take one optimizer step of a chunk, or none where `finite` is false.

        d_unit [c K, D]: the loss's gradient by the centres at length 1, anything where `finite` is false, and overwritten;
        inverse [c K, 1]: 1 / their lengths; lr: a scalar, 0 where `finite` is false.
        """
        where_finite(d_unit, finite)
        weight, moments = self._load(CENTERS, chunk), self._moments(chunk)
        if self._factors is not None:
            weight, moments = self._caught_up(weight, moments, chunk)
        gradient = self._gradient(d_unit, self._each(weight), inverse).view_as(weight)
        optimizer = self._storage.optimizer
        count = self._count(chunk, finite) if optimizer.counts else None
        optimizer.step(RowUpdate(weight, gradient, moments, lr, finite, count))
        self._store(CENTERS, chunk, weight)
        for name, moment in zip(optimizer.moments, moments, strict=True):
            self._store(name, chunk, moment)

    def _gradient(self, d_unit_: Tensor, centers: Tensor, inverse: Tensor) -> Tensor:
        """The gradient by the centres [c K, D] themselves."""
        # Scaling to length 1 lets through only what is at right angles to the row.
        radial = torch.linalg.vecdot(d_unit_, centers).unsqueeze(1).mul_(inverse * inverse).neg_()
        return d_unit_.addcmul_(centers, radial).mul_(inverse)

    def _load(self, name: str, chunk: slice) -> Tensor:
        """A chunk of a tensor in the type that is computed in: itself where it can be."""
        stored = self._tensors[name]
        if self._index is None:
            part = stored[chunk]
        else:
            index = self._index[chunk]
            part = self._scratch(f"stored {name}", len(index), stored.dtype)
            torch.index_select(stored, 0, index, out=part)
        if part.dtype == self._storage.dtype:
            return part
        return self._scratch(name, len(part), self._storage.dtype).copy_(part)

    def _moments(self, chunk: slice) -> list[Tensor]:
        return [self._load(name, chunk) for name in self._storage.optimizer.moments]

    def _caught_up(self, weight: Tensor, moments: list[Tensor], chunk: slice) -> tuple[Tensor, list[Tensor]]:
        """Weight, and momentum if there is one, after the steps that the rows have missed; copies."""
        assert self._factors is not None
        dtype, part = self._storage.dtype, self._factors[chunk].unsqueeze(-1)  # [c, 2, 2, 1]
        later = torch.mul(weight, part[:, 0, 0], out=self._scratch("later weight", len(weight), dtype))
        if not moments:
            return later, []
        (momentum,) = moments
        later.addcmul_(momentum, part[:, 0, 1])
        later_momentum = torch.mul(
            momentum, part[:, 1, 1], out=self._scratch("later momentum", len(weight), dtype)
        )
        return later, [later_momentum.addcmul_(weight, part[:, 1, 0])]

    def _count(self, chunk: slice, finite: Tensor) -> Tensor:
        """[c, 1] steps that the rows have taken, with this one."""
        rows, counts = self.classes.rows, self._storage.counts
        index = slice(chunk.start, chunk.stop) if rows is None else rows[chunk]
        count = counts[index] + finite.to(torch.int32)
        counts[index] = count
        return count.unsqueeze(1)

    def _store(self, name: str, chunk: slice, values: Tensor) -> None:
        stored, storage = self._tensors[name], self._storage
        values = self._rounded(
            name, values, None if self.classes.noise is None else self.classes.noise[chunk]
        )
        if self._index is not None:
            stored.index_copy_(0, self._index[chunk], values)
        elif stored.dtype != storage.dtype or self._factors is not None:  # else it was worked on in place
            stored[chunk].copy_(values)

    def _rounded(self, name: str, values: Tensor, noise: Tensor | None) -> Tensor:
        """Rows [c, D] as they are stored. noise: [c], where that is in bfloat16."""
        stored, storage = self._tensors[name], self._storage
        if stored.dtype != torch.bfloat16:
            return values
        assert noise is not None
        values = values.to(torch.float32)
        rounding.round_(values, noise, storage.rounding_columns[name], storage.scratch)
        return self._scratch(f"stored {name}", len(values), stored.dtype).copy_(values)  # exact by now

    def _each(self, rows: Tensor) -> Tensor:
        """The centres [c K, D] of rows [c, K D]."""
        return rows.view(-1, self._storage.width // self._storage.subcenters)

    def _scratch(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        return self._storage.scratch.get(name, (rows, self._storage.width), dtype)
