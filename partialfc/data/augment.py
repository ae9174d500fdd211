"""What happens to pixels between a pack and a network. Everything random is keyed by (seed, epoch, sample)."""

import numpy as np
from torch import Tensor

from partialfc.config import AugmentConfig
from partialfc.data.images import Pixels
from partialfc.runtime import randomness


def augmented(pixels: Pixels, config: AugmentConfig, *, seed: int, epoch: int, sample: int) -> Pixels:
    """The image [H, W, 3] as it is seen in an epoch: a pure function of the arguments."""
    chance = randomness.uniform(randomness.key(seed, "flip", epoch), np.array([sample]))[0]
    return pixels[:, ::-1] if chance < config.flip else pixels


def network_input(images: Tensor) -> Tensor:
    """uint8 RGB [b, H, W, 3] -> float32 [b, 3, H, W] in [-1, 1], channels last in memory."""
    return (images.permute(0, 3, 1, 2).float() - 127.5) / 127.5
