"""Which rows and columns a program of a kernel works on."""

# mypy: disable-error-code="no-untyped-def, misc"

import triton
import triton.language as tl

ROWS = 4  # of a program


@triton.jit
def tile(size, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):
    """This program's places in the chunk [ROWS] int64, its columns [PADDED], and which of them there are."""
    slot = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    live = slot < size
    return slot, column, live, live[:, None] & (column < WIDTH)[None, :]


@triton.jit
def stored_at(index, slot, live):
    """The rows of the stored tensors."""
    row = slot
    if index is not None:
        row = tl.load(index + slot, mask=live, other=0)
    return row


@triton.jit
def current(weights, momenta, factors, place, slot, live, within, COMPUTED: tl.constexpr):
    """The weights of rows, after the steps that they have missed where there are factors."""
    weight = tl.load(weights + place, mask=within, other=0.0).to(COMPUTED)
    if factors is not None:
        weight = weight * tl.load(factors + slot * 4, mask=live, other=1.0)[:, None]
        if momenta is not None:
            momentum = tl.load(momenta + place, mask=within, other=0.0).to(COMPUTED)
            weight += momentum * tl.load(factors + slot * 4 + 1, mask=live, other=0.0)[:, None]
    return weight
