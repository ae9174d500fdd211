"""A Triton kernel that moves rows between a GPU's memory and the host's."""

# mypy: disable-error-code="no-untyped-def, misc"

import torch
import triton
import triton.language as tl
from torch import Tensor

from partialfc.head.kernels.launching import launch
from partialfc.head.kernels.tiles import ROWS, stored_at, tile


def move_rows(
    source: Tensor, target: Tensor, *, picked: Tensor | None = None, put: Tensor | None = None
) -> None:
    """target[i] = source[picked[i]], or target[put[i]] = source[i], for every row of the smaller one: one of the two is
    given, int64 on the device. Rows of one type and width; either may be pinned memory of the host.
    """
    index = picked if picked is not None else put
    assert index is not None
    words = source.shape[1] * source.element_size() // 2  # bits are moved, whatever they mean
    launch(
        _move_rows,
        (triton.cdiv(len(index), ROWS),),
        index,
        source.view(torch.int16),
        target.view(torch.int16),
        len(index),
        PICKED=picked is not None,
        WIDTH=words,
        PADDED=triton.next_power_of_2(words),
        ROWS=ROWS,
    )


@triton.jit
def _move_rows(
    index, source, target, size,
    PICKED: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    slot, column, live, within = tile(size, WIDTH, PADDED, ROWS)
    far = stored_at(index, slot, live)[:, None] * WIDTH + column[None, :]
    near = slot[:, None] * WIDTH + column[None, :]
    if PICKED:
        tl.store(target + near, tl.load(source + far, mask=within), mask=within)
    else:
        tl.store(target + far, tl.load(source + near, mask=within), mask=within)
