"""A Triton kernel of a chunk's logits: one pass from what the product gives to the exponentials that are kept."""

# mypy: disable-error-code="no-untyped-def, misc"

import torch
import triton
import triton.language as tl
from torch import Tensor

from partialfc.head.chunk import Places
from partialfc.head.kernels.launching import TYPES, launch
from partialfc.head.losses import HardNegatives

_ROWS, _COLUMNS = 64, 64  # of a program


def exponentials(
    logits_: Tensor,
    places: Places,
    *,
    shift: Tensor | None,
    largest: float | None,
    correction: Tensor | None,
    hard: HardNegatives | None,
    total_: Tensor | None,
    out: Tensor,
) -> None:
    """As `chunk.exponentials`. The sums of blocks of rows are added up in a fixed order."""
    size, batch = logits_.shape
    blocks = triton.cdiv(size, _ROWS)
    partial = None if total_ is None else logits_.new_empty(blocks, batch)
    launch(
        _exponentials,
        (blocks, triton.cdiv(batch, _COLUMNS)),
        logits_,
        out,
        places.slot_of_image,
        shift,
        correction,
        None if hard is None else hard.above,
        None if hard is None else hard.level,
        partial,
        places.start,
        size,
        batch,
        None if largest is None else float(largest),
        None if hard is None else float(hard.scale),
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        COMPUTED=TYPES[logits_.dtype],
    )
    if total_ is not None and partial is not None:
        total_ += partial.sum(dim=0, dtype=torch.float64)


@triton.jit(do_not_specialize=["start", "size"])
def _exponentials(
    logits, out, slots, shift, correction, hard, levels, partial, start, size, batch,
    largest, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr, COMPUTED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = (row < size)[:, None] & (column < batch)[None, :]
    place = row[:, None].to(tl.int64) * batch + column[None, :]
    logit = tl.load(logits + place, mask=within, other=float("-inf"))
    if largest is not None:
        logit = tl.where(logit > largest, float("-inf"), logit)
    slope = tl.full((ROWS, COLUMNS), 1.0, COMPUTED)
    if hard is not None:
        cosine, level = logit / scale, tl.load(levels)
        raised = logit > tl.load(hard + column, mask=column < batch, other=float("inf"))[None, :]
        slope = tl.where(raised, level + 2 * cosine, 1.0)
        logit = tl.where(raised, logit * (level + cosine), logit)
    if correction is not None:
        logit += tl.load(correction + row, mask=row < size, other=0.0)[:, None]
    if shift is not None:
        logit -= tl.load(shift + column, mask=column < batch, other=0.0)[None, :]
    target = tl.load(slots + column, mask=column < batch, other=-1) - start
    value = tl.where(row[:, None] == target[None, :], 0.0, tl.exp(logit)).to(COMPUTED)
    tl.store(out + place, (value * slope).to(out.dtype.element_ty), mask=within)
    if partial is not None:
        sums = tl.sum(value, 0)
        tl.store(partial + tl.program_id(0).to(tl.int64) * batch + column, sums, mask=column < batch)
