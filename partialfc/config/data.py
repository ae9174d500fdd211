"""`data:` and `augment:` of a recipe."""

from typing import Annotated, Literal

from msgspec import Meta

from partialfc.config.types import Chance, Count, Fraction, Natural, Pixels, Seed, Settings


class SyntheticData(Settings, frozen=True):
    """Built-in identities, drawn and packed into `data.path` when nothing is there."""

    identities: Count = 400
    """Identities to train on."""
    images: Count = 20
    """Images of each identity."""
    unseen: Annotated[int, Meta(ge=20)] = 100
    """Identities of the verification set, never trained on."""
    pairs: Annotated[int, Meta(ge=20, multiple_of=20)] = 1000
    """Pairs of the verification set, half of them of the same identity."""
    size: Annotated[Pixels, Meta(ge=32, le=512)] = 112
    """Height and width of the images."""
    difficulty: Annotated[float, Meta(ge=0, le=2)] = 1.0
    """How strong pose, light, occlusion, blur and noise are."""
    seed: Seed = 0
    """Decides what is drawn; the run's own seed does not change its data."""


Reader = Literal["native", "mxnet"]


class DataConfig(Settings, frozen=True):
    """Where images come from."""

    path: str
    """Folder with train.rec, train.idx, property and the .bin verification sets."""
    workers: Natural = 2
    """Processes of each rank that read and decode; 0: the rank itself does."""
    reader: Reader = "native"
    """mxnet reads through mxnet's own code, in an environment of requirements-mxnet.txt."""
    on_corrupt: Literal["fail", "skip"] = "fail"
    """What happens at an image that cannot be read: the run ends, or another image takes its place."""
    order: Literal["shuffle", "blocks"] = "shuffle"
    """blocks reads neighbouring records, for disks that dislike seeks."""
    lanes: Count = 64
    """Of `order: blocks`: streams of neighbours, divided among the ranks."""
    synthetic: SyntheticData | None = None
    """Built-in identities, drawn where there is no pack yet."""


class AugmentConfig(Settings, frozen=True):
    """Probabilities that an image is changed so, drawn anew in every epoch, in this order; and how far."""

    crop: Chance = 0.0
    """A part is cut out, `crop_area` to all of the area, 3:4 to 4:3, and enlarged."""
    crop_area: Fraction = 0.2
    """Least share of the area that `crop` leaves: 0.2 is AdaFace's, 0.7 moves, stretches and enlarges a face a little."""
    low_resolution: Chance = 0.0
    """The image is shrunk to 20 to 100 % of its sides, and enlarged again."""
    blur: Chance = 0.0
    """Gaussian, sigma 0.5 to 2 pixels of 112."""
    photometric: Chance = 0.0
    """Brightness, contrast and saturation, each times 0.5 to 1.5."""
    grey: Chance = 0.0
    """Without colours."""
    flip: Chance = 0.5
    """Left to right."""

    @property
    def strong(self) -> bool:
        """Whether more than flips may happen."""
        return any((self.crop, self.low_resolution, self.blur, self.photometric, self.grey))
