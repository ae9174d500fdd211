"""A few identities of a pack, to be looked at."""

from partialfc.data.dataset import RecordDataset
from partialfc.data.images import ImageArray
from partialfc.errors import InputError

_MAX_SCANNED = 2000  # images at most: a pack may hold many millions


def sample_identities(
    dataset: RecordDataset, num_identities: int = 20, images_per_identity: int = 10
) -> list[tuple[ImageArray, str]]:
    """Faces, uint8 RGB [H, H, 3], and their classes' numbers: up to `images_per_identity` of each of up to `num_identities` identities, those with
    the most among the first images of the pack. What cannot be read is left out.
    """
    by_class: dict[int, list[ImageArray]] = {}
    for index in range(min(_MAX_SCANNED, len(dataset))):
        try:
            face, label = dataset[index]
        except (InputError, OSError):  # a run that is through does not end for a picture
            continue
        known = by_class.setdefault(label, [])
        if len(known) < images_per_identity:
            known.append(face)
    most = sorted(by_class, key=lambda label: -len(by_class[label]))[:num_identities]
    return [(face, str(label)) for label in sorted(most) for face in by_class[label]]
