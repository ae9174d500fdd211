"""Launch of Triton kernels, access to stored rows, and the copy of rows between the memories of GPU and host."""

# mypy: disable-error-code="no-untyped-def, misc"

import os
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}  # of the computation
ROWS = 4  # per program
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on the host, for tests


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its first argument, without a host sync."""
    here = INTERPRETED or arguments[0].device.index == torch.cuda.current_device()
    with nullcontext() if here else torch.cuda.device(arguments[0].device):
        kernel[grid](*arguments, **constants)


def copy_rows(
    source: Tensor, target: Tensor, *, picked: Tensor | None = None, put: Tensor | None = None
) -> None:
    """Copy rows by index: `target[i] = source[picked[i]]`, or `target[put[i]] = source[i]`.

    Args:
        source: Rows, in the memory of the GPU or pinned memory of the host.
        target: Rows of the same dtype and width, likewise.
        picked: Rows of `source`, int64 on the GPU.
        put: Rows of `target`, int64 on the GPU; exactly one of the two is given.
    """
    index = picked if picked is not None else put
    assert index is not None
    words = source.shape[1] * source.element_size() // 2  # rows are copied as 16-bit words
    launch(
        _copy_rows,
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
def tile(size, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):
    """Return the rows and columns of this program, and masks of those that exist."""
    slot = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    live = slot < size
    return slot, column, live, live[:, None] & (column < WIDTH)[None, :]


@triton.jit
def stored_at(index, slot, live):
    """Return the rows of the stored tensors."""
    row = slot
    if index is not None:
        row = tl.load(index + slot, mask=live, other=0)
    return row


@triton.jit
def current(weights, momenta, factors, place, slot, live, within, COMPUTED: tl.constexpr):
    """Load the weights of rows, after their missed steps if there are factors."""
    weight = tl.load(weights + place, mask=within, other=0.0).to(COMPUTED)
    if factors is not None:
        weight = weight * tl.load(factors + slot * 4, mask=live, other=1.0)[:, None]
        if momenta is not None:
            momentum = tl.load(momenta + place, mask=within, other=0.0).to(COMPUTED)
            weight += momentum * tl.load(factors + slot * 4 + 1, mask=live, other=0.0)[:, None]
    return weight


@triton.jit
def _copy_rows(
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
