"""Stochastic rounding to bfloat16 with noise keyed by (seed, step, class, component).

Rounding to nearest stops a row if its steps are below 1/256 of its components. Stochastic rounding preserves the mean
(Gupta et al. 2015, arXiv 1502.02551; for class centers: ELMO, arXiv 2510.11168).

Shapes:
    c: rows in a chunk
    S: active rows
    D: components
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.head.buffers import BufferPool
from partialfc.runtime import counter_rng

# Factors of a 32-bit hash by Wellons, as signed integers.
MIX = (
    0x7FEB352D,
    0x846CA68B - (1 << 32),
)
LOW = 0xFFFF  # bits of a float32 that bfloat16 drops


def row_noise(classes: NDArray[np.int64], seed: int, step: int) -> Tensor:
    """Return a noise word for each class, int32 `[S]`, independent of the rank that owns it."""
    return _words(row_key(seed, step), classes)


def row_key(seed: int, step: int) -> int:
    """Return the key of the noise words of a step's rows."""
    return counter_rng.derive_key(seed, "rounding", step)


def column_noise(name: str, width: int) -> Tensor:
    """Return a noise word for each component of the tensor `name`, int32 `[D]`."""
    return _words(counter_rng.derive_key(0, f"rounding {name}"), np.arange(width))


def _words(key: int, index: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(
        (counter_rng.random_bits(key, index) >> np.uint64(32)).astype(np.uint32).view(np.int32)
    )


def round_(values: Tensor, noise: Tensor, columns: Tensor, scratch: BufferPool) -> Tensor:
    """Round finite float32 values `[c, D]` to bfloat16 values, in place; representable values do not change.

    Args:
        values: Values to round.
        noise: Noise word of each row, int32 `[c]`.
        columns: Noise word of each component, int32 `[D]`. A hash of both gives 16 random bits for each value.
        scratch: Pool of temporary tensors.

    Returns:
        `values`.
    """
    word = torch.add(
        noise[:, None], columns, out=scratch.get("noise", tuple(values.shape), torch.int32)
    )  # fmt: skip
    shifted = scratch.get("shifted noise", tuple(values.shape), torch.int32)
    for factor in MIX:
        torch.bitwise_right_shift(word, 16, out=shifted)
        word.bitwise_xor_(shifted.bitwise_and_(LOW)).mul_(factor)
    torch.bitwise_right_shift(word, 16, out=shifted)  # the upper half is mixed best
    bits = values.view(torch.int32)
    bits.add_(shifted.bitwise_and_(LOW)).bitwise_and_(~LOW)  # the carry has the probability of the lower half
    return values
