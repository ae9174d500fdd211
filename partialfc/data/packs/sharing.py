"""Identities that two packs have images of in common."""

from collections import Counter
from pathlib import Path

import numpy as np

from partialfc.data.dataset import RecordDataset
from partialfc.data.images import Pixels
from partialfc.data.perceptual_hash import Hashes, hashed, near_pairs


def shared(first: Path, second: Path, *, progress: bool = False) -> Counter[tuple[int, int]]:
    """Pairs of classes, of the `first` pack and the `second`, that have the same image, be it encoded anew, resized or mirrored
    (see `near_pairs`): in how many pairs of images. InputError where one of them cannot be read.
    """
    packs = [RecordDataset(pack) for pack in (first, second)]
    (hashes, mirrored), (others, _) = (pack_hashes(it, progress=progress) for it in packs)
    ours, theirs = near_pairs(np.concatenate([hashes, mirrored]), others)
    images = {(one % len(hashes), other) for one, other in zip(ours.tolist(), theirs.tolist(), strict=True)}
    return Counter((packs[0].label(one), packs[1].label(other)) for one, other in images)


def pack_hashes(pack: RecordDataset, *, progress: bool = False) -> tuple[Hashes, Hashes]:
    """The hashes of a pack's images, and those of their mirror images."""

    def pixels(image: int) -> Pixels:
        found: Pixels = pack[image][0]
        return found

    return hashed(pixels, len(pack), f"reading {pack.path.parent.name}", progress=progress)
