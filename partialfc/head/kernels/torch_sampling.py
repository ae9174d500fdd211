"""Rows of a step that are sampled on the device, in torch: the reference of `triton_sampling`.

Shapes:
    S: active classes of this rank
    A: rows that are active for the batch only
"""

from typing import NamedTuple

import torch
from torch import Tensor

from partialfc.runtime.counter_rng import GAMMA, as_int64, mix_words

_UNIFORM_BITS = 53  # of float64's mantissa, as in counter_rng.random_uniform


class SampleParameters(NamedTuple):
    """Numbers that the rows depend on, in the order in which kernels read them; keys have the bits of words."""

    key: int  # of the draws
    num_classes: int  # of all ranks
    num_strata: int  # of all ranks
    first_stratum: int  # of this rank's first piece of the circle
    second_stratum: int  # of its second piece
    first_count: int  # strata of the first piece
    first_offset: int  # row minus position, in the first piece
    second_offset: int
    noise_key: int  # of the noise of stochastic rounding
    first_class: int  # of this rank


def sample_rows(
    parameters: Tensor, inserted: Tensor, num_active: int, *, noise: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the active rows of a step, ascending, int64 `[S]`, and their noise words, int32 `[S]`.

    Args:
        parameters: `SampleParameters`, int64 `[10]`.
        inserted: Rows that are not sampled, ascending, and their active indices, int64 `[2, A]`.
        num_active: S.
        noise: Whether noise is needed.
    """
    # Scalars on the device.
    key, classes, strata, first, second, first_count, first_offset, second_offset, noise_key, first_class = (
        parameters.unbind()
    )
    slots = torch.arange(num_active, device=parameters.device)
    before = torch.searchsorted(inserted[1].contiguous(), slots)  # inserted rows before each slot
    drawn = slots - before
    in_first = drawn < first_count
    stratum = drawn + torch.where(in_first, first, second - first_count)
    edge = stratum * classes // strata
    width = (stratum + 1) * classes // strata - edge
    uniform = _logical_shift(_words(key, stratum), 64 - _UNIFORM_BITS).double() * 2.0**-_UNIFORM_BITS
    rows = edge + (uniform * width).long() + torch.where(in_first, first_offset, second_offset)
    if inserted.shape[1]:
        rows.index_copy_(0, inserted[1], inserted[0])
    if not noise:
        return rows, None
    return rows, _logical_shift(_words(noise_key, rows + first_class), 32).to(torch.int32)


def _words(key: Tensor | int, index: Tensor) -> Tensor:
    """Return `counter_rng.random_bits`, as int64 of the same bits."""
    return mix_words(index * as_int64(GAMMA) + key)


def _logical_shift(words: Tensor, bits: int) -> Tensor:
    return (words >> bits) & ((1 << 64 - bits) - 1)
