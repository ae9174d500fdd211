"""Identities that two packs have images of in common."""

from collections import Counter
from pathlib import Path

from partialfc.data.dataset import RecordDataset
from partialfc.data.images import ImageArray
from partialfc.data.perceptual_hash import Hashes, find_near_pairs, hash_images


def find_shared_identities(first: Path, second: Path, *, progress: bool = False) -> Counter[tuple[int, int]]:
    """Pairs of classes, of the `first` pack and the `second`, that have the same image, be it encoded anew, resized or mirrored
    (see `find_near_pairs`): in how many pairs of images. InputError where one of them cannot be read.
    """
    packs = [RecordDataset(pack) for pack in (first, second)]
    both = hash_pack(packs[0], mirrored=True, progress=progress)
    ours, theirs = find_near_pairs(both, hash_pack(packs[1], progress=progress))
    images = set(zip((ours % len(packs[0])).tolist(), theirs.tolist(), strict=True))
    return Counter((packs[0].label(one), packs[1].label(other)) for one, other in images)


def hash_pack(pack: RecordDataset, *, mirrored: bool = False, progress: bool = False) -> Hashes:
    """The hashes of a pack's images, see `hash_images`."""

    def pixels(image: int) -> ImageArray:
        found: ImageArray = pack[image][0]
        return found

    what = f"reading {pack.path.parent.name}"
    return hash_images(pixels, len(pack), what, mirrored=mirrored, progress=progress)
