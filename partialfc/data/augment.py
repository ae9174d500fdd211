"""What happens to pixels between a pack and a network. Everything random is keyed by (seed, epoch, sample)."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from partialfc.config import AugmentConfig
from partialfc.runtime import randomness


def flipped(samples: NDArray[np.int64], config: AugmentConfig, *, seed: int, epoch: int) -> NDArray[np.bool_]:
    """Which of `samples` [b] are mirrored in an epoch: a pure function of the arguments."""
    chance = randomness.uniform(randomness.key(seed, "flip", epoch), samples)
    return chance < config.flip


def network_input(images: Tensor) -> Tensor:
    """uint8 RGB [b, H, W, 3] -> float32 [b, 3, H, W] in [-1, 1], channels last in memory."""
    return (images.permute(0, 3, 1, 2).float() - 127.5) / 127.5
