"""The rows that a step works on, by kernels: each chunk read once forward, and read and written once in the update."""

from torch import Tensor

from partialfc.head.active_rows import CENTERS, ActiveRows, UnitRows
from partialfc.head.kernels.rows import Rounding, Rows, step_rows, unit_rows
from partialfc.head.kernels.targets import target_angles


class FusedRows(ActiveRows):
    """As ActiveRows, where a class has one centre."""

    def unit_chunk(self, chunk: slice, *, inverse_: Tensor) -> UnitRows:
        """See ActiveRows."""
        storage, size = self._storage, chunk.stop - chunk.start
        kinds = storage.products.of_logits, storage.products.of_exponentials
        for_logits, for_sums = (self._scratch(f"unit {kind}", size, kind) for kind in kinds)
        unit_rows(
            self._rows(chunk),
            for_logits=for_logits,
            for_sums=None if kinds[0] == kinds[1] else for_sums,
            inverse_=inverse_,
            dtype=storage.dtype,
        )
        return UnitRows(for_logits, for_sums)

    def update_chunk(self, chunk: slice, d_unit: Tensor, inverse: Tensor, lr: Tensor, finite: Tensor) -> None:
        """See ActiveRows."""
        optimizer, columns = self._storage.optimizer, self._storage.rounding_columns
        rounding = None
        if columns:
            assert self.classes.noise is not None
            names = CENTERS, *optimizer.moments
            rounding = Rounding(self.classes.noise[chunk], tuple(map(columns.get, names)))
        step_rows(
            self._rows(chunk),
            d_unit,
            inverse,
            lr=lr,
            finite=finite,
            corrections=(
                optimizer.corrections(self._count(chunk, finite), d_unit.dtype) if optimizer.counts else None
            ),
            constants=optimizer.constants,
            rounding=rounding,
        )

    def target_angles(
        self, slots: Tensor, embeddings: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ActiveRows."""
        every = self._rows(slice(0, self.num_active))
        return *target_angles(every, slots, embeddings, positions, dtype=self._storage.dtype), slots

    def _rows(self, chunk: slice) -> Rows:
        index = None if self._index is None else self._index[chunk]
        names = CENTERS, *self._storage.optimizer.moments
        stored = (self._tensors[name] if index is not None else self._tensors[name][chunk] for name in names)
        weights, *moments = stored
        factors = None if self._factors is None else self._factors[chunk]
        return Rows(weights, tuple(moments), index, factors)
