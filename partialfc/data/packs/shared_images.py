"""Identities that two packs share."""

from collections import Counter
from pathlib import Path

from partialfc.data.dataset import RecordDataset
from partialfc.data.images import ImageArray
from partialfc.data.perceptual_hash import Hashes, find_near_pairs, hash_images


def find_shared_identities(first: Path, second: Path, *, progress: bool = False) -> Counter[tuple[int, int]]:
    """Return pairs of classes of the `first` and the `second` pack with common images, and the number of matches.

    Re-encoded, resized and mirrored copies match, see `find_near_pairs`.

    Raises:
        InputError: If a pack cannot be read.
    """
    packs = [RecordDataset(pack) for pack in (first, second)]
    both = hash_pack(packs[0], mirrored=True, progress=progress)
    ours, theirs = find_near_pairs(both, hash_pack(packs[1], progress=progress))
    images = set(zip((ours % len(packs[0])).tolist(), theirs.tolist(), strict=True))
    return Counter((packs[0].label(one), packs[1].label(other)) for one, other in images)


def hash_pack(pack: RecordDataset, *, mirrored: bool = False, progress: bool = False) -> Hashes:
    """Return the hashes of a pack's images, see `hash_images`."""

    def pixels(image: int) -> ImageArray:
        found: ImageArray = pack[image][0]
        return found

    what = f"reading {pack.path.parent.name}"
    return hash_images(pixels, len(pack), what, mirrored=mirrored, progress=progress)
