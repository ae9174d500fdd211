"""A Triton kernel of a chunk's logits: one pass from what the product gives to the push weights that are kept."""

# mypy: disable-error-code="no-untyped-def, misc"

import torch
import triton
import triton.language as tl
from torch import Tensor

from partialfc.head.kernels.triton_rows import TYPES, launch
from partialfc.head.losses import HardNegativeRule
from partialfc.head.sampling import ChunkTargets

_ROWS, _COLUMNS = 64, 64  # of a program


def exp_logits(
    logits_: Tensor,
    targets: ChunkTargets,
    correction: Tensor | None,
    *,
    total_: Tensor | None,
    out: Tensor,
    shift: Tensor | None,
    largest: float | None,
    hard: HardNegativeRule | None,
) -> None:
    """Run `torch_ops.exp_logits` in one pass; sums of blocks of rows are added in a fixed order."""
    size, batch = logits_.shape
    blocks = triton.cdiv(size, _ROWS)
    partial = None if total_ is None else logits_.new_empty(blocks, batch)
    launch(
        _exp_logits,
        (blocks, triton.cdiv(batch, _COLUMNS)),
        logits_,
        out,
        targets.slots,
        shift,
        correction,
        None if hard is None else hard.logit_threshold,
        None if hard is None else hard.level,
        partial,
        targets.start,
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
def _exp_logits(
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
