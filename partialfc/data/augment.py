"""Augmentations and normalization between a pack and the network. Random parameters are keyed by (seed, epoch, sample).

The strong augmentations are those of AdaFace (arXiv:2204.00964, section 4: crop, low resolution, photometric)
and of insightface's DALI pipeline (blur, gray). They use OpenCV: albumentations is no longer maintained, and
torchvision's random state belongs to the process, not to the sample.
"""

import math
from itertools import islice

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray
from torch import Tensor

from partialfc.config import AugmentConfig
from partialfc.data.images import ImageArray
from partialfc.runtime import counter_rng

_METHODS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


def flip_mask(
    samples: NDArray[np.int64], config: AugmentConfig, *, seed: int, epoch: int
) -> NDArray[np.bool_]:
    """Return which of `samples` `[b]` are flipped in an epoch."""
    chance = counter_rng.random_uniform(counter_rng.derive_key(seed, "flip", epoch), samples)
    return chance < config.flip


def augmentation_params(samples: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.float64]:
    """Return random parameters for `augment`, uniform in [0, 1), one row per sample `[b]`."""
    count = sum(1 + strengths for _, _, _, strengths in _AUGMENTATIONS)
    index = samples[:, None] * count + np.arange(count)
    return counter_rng.random_uniform(counter_rng.derive_key(seed, "augment", epoch), index)


def augment(pixels: ImageArray, params: NDArray[np.float64], config: AugmentConfig) -> ImageArray:
    """Return an augmented image of the same shape; `params` is its row of `augmentation_params`."""
    numbers = iter(params.tolist())
    for name, change, limits, strengths in _AUGMENTATIONS:
        chance, *rest = islice(numbers, 1 + strengths)
        if chance < getattr(config, name):
            given = (getattr(config, limit) for limit in limits)
            pixels = np.asarray(change(pixels, *given, *rest), np.uint8)
    return pixels


def network_input(images: Tensor) -> Tensor:
    """uint8 RGB [b, H, W, 3] -> float32 [b, 3, H, W] in [-1, 1], channels last in memory."""
    return (images.permute(0, 3, 1, 2).float() - 127.5) / 127.5


def _random_crop(
    pixels: MatLike, min_area: float, area: float, aspect: float, down: float, right: float
) -> MatLike:
    height, width = pixels.shape[:2]
    cut_area = (min_area + (1 - min_area) * area) * height * width
    ratio = math.exp((2 * aspect - 1) * math.log(4 / 3))  # aspect ratios from 3:4 to 4:3
    cut_height = max(1, min(height, round(math.sqrt(cut_area / ratio))))
    cut_width = max(1, min(width, round(math.sqrt(cut_area * ratio))))
    top, left = int(down * (height - cut_height + 1)), int(right * (width - cut_width + 1))
    return cv2.resize(pixels[top : top + cut_height, left : left + cut_width], (width, height))


def _reduce_resolution(pixels: MatLike, side: float, down: float, up: float) -> MatLike:
    height, width = pixels.shape[:2]
    share = 0.2 + 0.8 * side
    small = (max(1, round(share * width)), max(1, round(share * height)))
    methods = [_METHODS[int(draw * len(_METHODS))] for draw in (down, up)]
    shrunk = cv2.resize(pixels, small, interpolation=methods[0])
    return cv2.resize(shrunk, (width, height), interpolation=methods[1])


def _blur(pixels: MatLike, strength: float) -> MatLike:
    sigma = (0.5 + 1.5 * strength) * pixels.shape[0] / 112
    return cv2.GaussianBlur(pixels, (0, 0), sigma)


def _jitter_colors(pixels: MatLike, brightness: float, contrast: float, saturation: float) -> MatLike:
    """Multiply brightness, contrast around the mean, and saturation around each pixel's gray by 0.5 to 1.5."""
    gray = _grayed(pixels)
    mean = gray.mean() * (0.5 + brightness)
    values = (np.arange(256) * (0.5 + brightness) - mean) * (0.5 + contrast) + mean
    more_or_less = cv2.addWeighted(pixels, 0.5 + saturation, gray, 0.5 - saturation, 0)
    return cv2.LUT(more_or_less, values.clip(0, 255).astype(np.uint8))


def _grayed(pixels: MatLike) -> MatLike:
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


# Key of the probability in `augment`, function, keys of its arguments, number of random parameters.
_AUGMENTATIONS = (
    ("crop", _random_crop, ("min_crop_area",), 4),
    ("low_resolution", _reduce_resolution, (), 3),
    ("blur", _blur, (), 1),
    ("photometric", _jitter_colors, (), 3),
    ("gray", _grayed, (), 0),
)
