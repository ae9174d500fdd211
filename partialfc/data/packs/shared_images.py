"""Identities that two packs have images of in common."""

from collections import Counter
from pathlib import Path

from partialfc.data.dataset import RecordDataset
from partialfc.data.images import Pixels
from partialfc.data.perceptual_hash import Hashes, hashed, near_pairs


def shared(first: Path, second: Path, *, progress: bool = False) -> Counter[tuple[int, int]]:
    """Pairs of classes, of the `first` pack and the `second`, that have the same image, be it encoded anew, resized or mirrored
    (see `near_pairs`): in how many pairs of images. InputError where one of them cannot be read.
    """
    packs = [RecordDataset(pack) for pack in (first, second)]
    both = pack_hashes(packs[0], mirrored=True, progress=progress)
    ours, theirs = near_pairs(both, pack_hashes(packs[1], progress=progress))
    images = set(zip((ours % len(packs[0])).tolist(), theirs.tolist(), strict=True))
    return Counter((packs[0].label(one), packs[1].label(other)) for one, other in images)


def pack_hashes(pack: RecordDataset, *, mirrored: bool = False, progress: bool = False) -> Hashes:
    """The hashes of a pack's images, see `hashed`."""

    def pixels(image: int) -> Pixels:
        found: Pixels = pack[image][0]
        return found

    what = f"reading {pack.path.parent.name}"
    return hashed(pixels, len(pack), what, mirrored=mirrored, progress=progress)
