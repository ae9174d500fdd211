"""Rows of a step that are sampled on the device, in one launch."""

# mypy: disable-error-code="no-untyped-def, misc"

import torch
import triton
import triton.language as tl
from torch import Tensor

from partialfc.head.kernels.triton_rows import launch
from partialfc.runtime.counter_rng import FACTORS, GAMMA, as_int64

_SLOTS = 512  # per program
_GAMMA = tl.constexpr(as_int64(GAMMA))
_FIRST_FACTOR, _SECOND_FACTOR = (tl.constexpr(as_int64(factor)) for factor in FACTORS)


def sample_rows(
    parameters: Tensor, inserted: Tensor, num_active: int, *, noise: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute `torch_sampling.sample_rows`."""
    rows = parameters.new_empty(num_active)
    words = parameters.new_empty(num_active if noise else 0, dtype=torch.int32)
    size = inserted.shape[1]
    launch(
        _sample_rows,
        (triton.cdiv(num_active, _SLOTS),),
        parameters,
        inserted,
        rows,
        words,
        num_active,
        size,
        HALVINGS=size.bit_length(),
        NOISE=noise,
        SLOTS=_SLOTS,
    )
    return rows, words if noise else None


@triton.jit
def _shifted(words, BITS: tl.constexpr):
    """Return words shifted to the right, with zeros from the left."""
    return (words >> BITS) & ((1 << (64 - BITS)) - 1)


@triton.jit
def _words(key, index):
    """Return the random words of `counter_rng.random_bits`, as int64."""
    words = index * _GAMMA + key
    for _ in tl.static_range(2):
        words = (words ^ _shifted(words, 30)) * _FIRST_FACTOR
        words = (words ^ _shifted(words, 27)) * _SECOND_FACTOR
        words = words ^ _shifted(words, 31)
    return words


@triton.jit
def _sample_rows(
    parameters,
    inserted,
    rows,
    noise,
    num_active,
    size,
    HALVINGS: tl.constexpr,
    NOISE: tl.constexpr,
    SLOTS: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64) * SLOTS + tl.arange(0, SLOTS)
    live = slot < num_active
    low = slot * 0  # number of inserted rows before the slot
    high = low + size
    for _ in tl.static_range(HALVINGS):
        middle = (low + high) // 2
        place = tl.load(inserted + size + middle, mask=middle < high, other=0)
        below = (middle < high) & (place < slot)
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    key, classes, count = tl.load(parameters), tl.load(parameters + 1), tl.load(parameters + 2)
    first_count = tl.load(parameters + 5)
    drawn = slot - low
    in_first = drawn < first_count
    stratum = drawn + tl.where(in_first, tl.load(parameters + 3), tl.load(parameters + 4) - first_count)
    edge = stratum * classes // count
    width = (stratum + 1) * classes // count - edge
    uniform = _shifted(_words(key, stratum), 11).to(tl.float64) * 1.1102230246251565e-16  # 2^-53
    position = edge + (uniform * width.to(tl.float64)).to(tl.int64)
    row = position + tl.where(in_first, tl.load(parameters + 6), tl.load(parameters + 7))
    if HALVINGS > 0:
        found = low < size
        place = tl.load(inserted + size + low, mask=found, other=-1)
        row = tl.where(place == slot, tl.load(inserted + low, mask=found, other=0), row)
    tl.store(rows + slot, row, mask=live)
    if NOISE:
        words = _shifted(_words(tl.load(parameters + 8), row + tl.load(parameters + 9)), 32)
        tl.store(noise + slot, words.to(tl.int32), mask=live)
