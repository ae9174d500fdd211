"""Stochastic rounding to bfloat16, by draws that are a function of (seed, step, class, component).

Rounded to the nearest, a row stops where its steps are below 1/256 of its components; rounded up with a probability
of where a number lies between its neighbours, it moves as it should on average (Gupta et al. 2015, arXiv 1502.02551;
for class centres ELMO, arXiv 2510.11168).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.head.scratch import ScratchMemory
from partialfc.runtime import randomness

MIX = (
    0x7FEB352D,
    0x846CA68B - (1 << 32),
)  # of a 32-bit hash by Wellons: two odd factors, as signed integers
LOW = 0xFFFF  # the bits of a float32 that bfloat16 lacks


def noise_of(classes: NDArray[np.int64], seed: int, step: int) -> Tensor:
    """A word of noise for each class [S], int32: the same whatever rank owns it."""
    return _words(randomness.key(seed, "rounding", step), classes)


def column_noise(name: str, width: int) -> Tensor:
    """A word for each component [D] of the rows called `name`, int32."""
    return _words(randomness.key(0, f"rounding {name}"), np.arange(width))


def _words(key: int, index: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy((randomness.bits(key, index) >> np.uint64(32)).astype(np.uint32).view(np.int32))


def round_(values: Tensor, noise: Tensor, columns: Tensor, scratch: ScratchMemory) -> Tensor:
    """float32 `values` [c, D], finite, in place: rounded to what bfloat16 holds. What it holds already stays.

    noise: int32 [c], columns: int32 [D]; their hash gives each number its 16 bits.
    """
    word = torch.add(
        noise[:, None], columns, out=scratch.get("noise", tuple(values.shape), torch.int32)
    )  # fmt: skip
    shifted = scratch.get("shifted noise", tuple(values.shape), torch.int32)
    for factor in MIX:
        torch.bitwise_right_shift(word, 16, out=shifted)
        word.bitwise_xor_(shifted.bitwise_and_(LOW)).mul_(factor)
    torch.bitwise_right_shift(word, 16, out=shifted)  # the upper half, which is mixed best
    bits = values.view(torch.int32)
    bits.add_(shifted.bitwise_and_(LOW)).bitwise_and_(~LOW)  # carries with the probability of the lower half
    return values
