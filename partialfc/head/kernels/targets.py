"""A Triton kernel of the targets' rows: from where they are stored to their angles with their images, in one pass."""

# mypy: disable-error-code="no-untyped-def, misc"

import torch
import triton
import triton.language as tl
from torch import Tensor

from partialfc.head.chunk import angles_of
from partialfc.head.kernels.launching import TYPES, launch
from partialfc.head.kernels.rows import Rows
from partialfc.head.kernels.tiles import ROWS, current, stored_at, tile

_EPS = 1e-12  # as torch.nn.functional.normalize has it


def target_angles(
    rows: Rows, slots: Tensor, embeddings: Tensor, positions: Tensor, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As `ActiveRows.target_angles`. rows: all of a step; dtype: that is computed in."""
    size, width = len(slots), embeddings.shape[1]
    centers = embeddings.new_empty(size, width)
    distances = embeddings.new_empty(2, size, dtype=torch.float64)  # |x - w| and |x + w|, for angles_of
    if size:
        launch(
            _target_distances,
            (triton.cdiv(size, ROWS),),
            rows.weights,
            rows.moments[0] if rows.moments and rows.factors is not None else None,
            rows.index,
            rows.factors,
            slots,
            embeddings,
            positions,
            centers,
            distances,
            size,
            WIDTH=width,
            PADDED=triton.next_power_of_2(width),
            ROWS=ROWS,
            COMPUTED=TYPES[dtype],
            EPS=_EPS,
        )
    return centers, angles_of(distances[0], distances[1], embeddings.dtype)


@triton.jit(do_not_specialize=["size"])
def _target_distances(
    weights, momenta, index, factors, slots, embeddings, positions, centers, distances, size,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, COMPUTED: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    target, column, live, within = tile(size, WIDTH, PADDED, ROWS)
    slot = tl.load(slots + target, mask=live, other=0)
    place = stored_at(index, slot, live)[:, None] * WIDTH + column[None, :]
    center = current(weights, momenta, factors, place, slot, live, within, COMPUTED)
    center = center / tl.maximum(tl.sqrt(tl.sum(center * center, 1)), EPS)[:, None]
    tl.store(centers + target[:, None] * WIDTH + column[None, :], center, mask=within)
    position = tl.load(positions + target, mask=live, other=0)
    image = tl.load(embeddings + position[:, None] * WIDTH + column[None, :], mask=within, other=0.0)
    apart, together = image - center, image + center
    tl.store(distances + target, tl.sqrt(tl.sum(apart * apart, 1)), mask=live)
    tl.store(distances + size + target, tl.sqrt(tl.sum(together * together, 1)), mask=live)
