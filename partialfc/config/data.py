"""Sections `data:` and `augment:` of a recipe."""

from typing import Annotated, Literal

from msgspec import Meta

from partialfc.config.types import (
    Fraction,
    NonNegativeInt,
    PixelCount,
    PositiveInt,
    Probability,
    Seed,
    Settings,
)


class SyntheticData(Settings, frozen=True):
    """Synthetic identities, generated and packed into `data.path` if it does not exist."""

    identities: PositiveInt = 400
    """Identities for training."""
    images: PositiveInt = 20
    """Images of each identity."""
    unseen: Annotated[int, Meta(ge=20)] = 100
    """Identities of the verification set, which training does not use."""
    pairs: Annotated[int, Meta(ge=20, multiple_of=20)] = 1000
    """Pairs of the verification set, half of them of the same identity."""
    size: Annotated[PixelCount, Meta(ge=32, le=512)] = 112
    """Height and width of the images."""
    difficulty: Annotated[float, Meta(ge=0, le=2)] = 1.0
    """Strength of pose, light, occlusion, blur and noise."""
    seed: Seed = 0
    """Seed of the images, independent of the seed of the run."""


Reader = Literal["native", "mxnet"]


class DataConfig(Settings, frozen=True):
    """Source of the images."""

    path: str
    """Folder with train.rec, train.idx, property and the .bin verification sets."""
    num_workers: NonNegativeInt = 2
    """Worker processes per rank that read and decode; 0: the rank itself."""
    reader: Reader = "native"
    """Reader of the records. mxnet: the code of mxnet, in an environment of requirements-mxnet.txt."""
    on_corrupt: Literal["fail", "skip"] = "fail"
    """Handling of unreadable images. fail: end the run; skip: use another image instead."""
    order: Literal["shuffle", "blocks"] = "shuffle"
    """Order of the samples. blocks: read neighboring records, for disks with slow seeks."""
    lanes: PositiveInt = 64
    """Streams of neighboring records, divided among the ranks, with `order: blocks`."""
    synthetic: SyntheticData | None = None
    """Synthetic identities, generated if there is no pack."""


class AugmentConfig(Settings, frozen=True):
    """Probabilities of augmentations, applied in this order, and their limits."""

    crop: Probability = 0.0
    """Crop of `min_crop_area` to all of the area, aspect ratio 3:4 to 4:3, resized to the full size."""
    min_crop_area: Fraction = 0.2
    """Smallest fraction of the area that `crop` keeps. 0.2: AdaFace; 0.7: small shifts and changes of size."""
    low_resolution: Probability = 0.0
    """Downscaling to 20 to 100 % of the size, and upscaling."""
    blur: Probability = 0.0
    """Gaussian blur, sigma 0.5 to 2 pixels of 112."""
    photometric: Probability = 0.0
    """Brightness, contrast and saturation, each multiplied by 0.5 to 1.5."""
    gray: Probability = 0.0
    """Conversion to gray."""
    flip: Probability = 0.5
    """Horizontal flip."""

    @property
    def has_strong_augmentations(self) -> bool:
        """True if there are augmentations other than flips."""
        return any((self.crop, self.low_resolution, self.blur, self.photometric, self.gray))
