"""Initial class centers: normal, keyed by (seed, block of classes), and therefore equal for any number of ranks.

A CPU uses numpy's Philox, which takes 7 s per million classes. A GPU uses SplitMix64 with the Box-Muller transform. The
two give different numbers of the same distribution.
"""

import math

import numpy as np
import torch
from torch import Tensor

from partialfc.runtime import counter_rng

STD = 0.01  # of the components
_BLOCK = 4096  # classes per key; part of the definition of the initial centers
_LOW = (1 << 32) - 1


def init_centers(centers: Tensor, seed: int, owned: range, device: torch.device) -> None:
    """Fill the centers `[n, D]` of the classes `owned`, on any device, with numbers generated on `device`."""
    for block in range(owned.start // _BLOCK, -(-owned.stop // _BLOCK) if owned else 0):
        key = counter_rng.derive_key(seed, "centers", block)
        drawn = (_by_numpy if device.type == "cpu" else by_hash)(key, centers.shape[1], device)
        begin, end = max(owned.start, block * _BLOCK), min(owned.stop, (block + 1) * _BLOCK)
        part = drawn[begin - block * _BLOCK : end - block * _BLOCK]
        centers[begin - owned.start : end - owned.start] = part


def _by_numpy(key: int, width: int, device: torch.device) -> Tensor:
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(generator.standard_normal((_BLOCK, width), np.float32) * np.float32(STD))


def by_hash(key: int, width: int, device: torch.device) -> Tensor:
    """Return a block of normal numbers, float32 `[_BLOCK, width]`; a 64-bit word gives two numbers."""
    pairs = torch.arange(_BLOCK * -(-width // 2), dtype=torch.int64, device=device)
    words = counter_rng.mix_words(
        pairs.mul_(counter_rng.as_int64(counter_rng.GAMMA)).add_(counter_rng.as_int64(key))
    )
    high, low = (words >> 32) & _LOW, words & _LOW
    # in (0, 1] for the logarithm, with the 24 bits of a float32
    radius = ((high >> 8) + 1).float().mul_(2.0**-24).log_().mul_(-2).sqrt_().mul_(STD)
    angle = (low >> 8).float().mul_(2 * math.pi * 2.0**-24)
    drawn = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return drawn.view(_BLOCK, -1)[:, :width]
