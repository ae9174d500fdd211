"""Rows that are no directions: taken as they are, at whatever length."""

import torch
from torch import Tensor

from partialfc.head.active_rows import ActiveRows, UnitRows


class PlainRows(ActiveRows):
    """As ActiveRows, but that nothing is brought to length 1."""

    def unit_chunk(self, chunk: slice, *, inverse_: Tensor) -> UnitRows:
        """The rows [c, D] of a chunk, until the next call; `inverse_` [c, 1] is filled with 1."""
        rows, products = self.read_chunk(chunk), self._storage.products
        inverse_.fill_(1)
        return UnitRows(
            *(self._as_factor(rows, kind) for kind in (products.of_logits, products.of_exponentials))
        )

    def target_angles(
        self, slots: Tensor, embeddings: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the classes at `slots` the rows [N, D]; the products [N] with the embeddings [B, D] at `positions`; and `slots`."""
        rows = self.gather_targets(slots)
        return rows, torch.linalg.vecdot(rows, embeddings.index_select(0, positions)), slots

    def _gradient(self, d_unit_: Tensor, centers: Tensor, inverse: Tensor) -> Tensor:
        return d_unit_
