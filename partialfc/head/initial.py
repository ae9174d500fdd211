"""The class centres that a run begins with: normal, in blocks of classes keyed by (seed, block), so that they are the same
for any sharding.

A CPU draws with numpy's Philox; a GPU, where that would take seven seconds a million classes, with SplitMix64 and Box and
Muller's transform. Runs begun on the two begin with other numbers of the same distribution.
"""

import math

import numpy as np
import torch
from torch import Tensor

from partialfc.runtime import randomness

STD = 0.01  # of a centre's components
_BLOCK = 4096  # classes drawn together; part of the definition of the initial centres
_LOW = (1 << 32) - 1


def draw_initial(centers: Tensor, seed: int, owned: range, device: torch.device) -> None:
    """Fill `centers` [n, D] of the classes `owned`, wherever they live; `device` draws."""
    for block in range(owned.start // _BLOCK, -(-owned.stop // _BLOCK) if owned else 0):
        key = randomness.key(seed, "centers", block)
        drawn = (_by_numpy if device.type == "cpu" else by_hash)(key, centers.shape[1], device)
        begin, end = max(owned.start, block * _BLOCK), min(owned.stop, (block + 1) * _BLOCK)
        part = drawn[begin - block * _BLOCK : end - block * _BLOCK]
        centers[begin - owned.start : end - owned.start] = part


def _by_numpy(key: int, width: int, device: torch.device) -> Tensor:
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(generator.standard_normal((_BLOCK, width), np.float32) * np.float32(STD))


def by_hash(key: int, width: int, device: torch.device) -> Tensor:
    """A block [_BLOCK, width] of float32, drawn where it is wanted; each pair of numbers from one word of 64 bits."""
    pairs = torch.arange(_BLOCK * -(-width // 2), dtype=torch.int64, device=device)
    words = randomness.mixed(pairs.mul_(randomness.signed(randomness.GAMMA)).add_(randomness.signed(key)))
    high, low = (words >> 32) & _LOW, words & _LOW
    # From above 0 to 1, as a logarithm is taken; 24 bits are what float32 holds.
    radius = ((high >> 8) + 1).float().mul_(2.0**-24).log_().mul_(-2).sqrt_().mul_(STD)
    angle = (low >> 8).float().mul_(2 * math.pi * 2.0**-24)
    drawn = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return drawn.view(_BLOCK, -1)[:, :width]
