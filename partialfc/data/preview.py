"""Sample of a few identities of a pack, for visualization."""

from partialfc.data.dataset import RecordDataset
from partialfc.data.images import ImageArray
from partialfc.errors import InputError

_MAX_SCANNED = 2000  # maximum number of images; a pack may have many millions


def sample_identities(
    dataset: RecordDataset, num_identities: int = 20, images_per_identity: int = 10
) -> list[tuple[ImageArray, str]]:
    """Return faces, uint8 RGB `[H, H, 3]`, and their class numbers.

    Up to `images_per_identity` of each of up to `num_identities` identities: those with the most images among
    the first of the pack. Unreadable images are skipped.
    """
    by_class: dict[int, list[ImageArray]] = {}
    for index in range(min(_MAX_SCANNED, len(dataset))):
        try:
            face, label = dataset[index]
        except (InputError, OSError):  # a finished run does not fail because of a figure
            continue
        known = by_class.setdefault(label, [])
        if len(known) < images_per_identity:
            known.append(face)
    most = sorted(by_class, key=lambda label: -len(by_class[label]))[:num_identities]
    return [(face, str(label)) for label in sorted(most) for face in by_class[label]]
