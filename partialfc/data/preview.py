"""A few identities of a pack, to be looked at."""

from partialfc.data.dataset import RecordDataset
from partialfc.data.images import Pixels
from partialfc.errors import InputError

_LOOKED_AT = 2000  # images at most: a pack may hold many millions


def some_identities(dataset: RecordDataset, count: int = 20, images: int = 10) -> list[tuple[Pixels, str]]:
    """Faces, uint8 RGB [H, H, 3], and their classes' numbers: up to `images` of each of up to `count` identities, those with
    the most among the first images of the pack. What cannot be read is left out.
    """
    by_class: dict[int, list[Pixels]] = {}
    for index in range(min(_LOOKED_AT, len(dataset))):
        try:
            face, label = dataset[index]
        except (InputError, OSError):  # a run that is through does not end for a picture
            continue
        known = by_class.setdefault(label, [])
        if len(known) < images:
            known.append(face)
    most = sorted(by_class, key=lambda label: -len(by_class[label]))[:count]
    return [(face, str(label)) for label in sorted(most) for face in by_class[label]]
