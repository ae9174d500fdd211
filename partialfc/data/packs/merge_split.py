"""Packs from packs: merge several, split by identities, change labels, select images. Images keep their bytes."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partialfc.data.dataset import RecordDataset
from partialfc.data.packs.names import read_names, write_names
from partialfc.data.packs.pack_writer import EncodedSample, pack_version, resume_pack
from partialfc.errors import InputError
from partialfc.runtime import counter_rng
from partialfc.runtime.progress import progress_bar

DROP = -1  # label of a removed image

# New class numbers for each pack, `[num_classes]`; -1: removed.
_Relabeling = list[tuple[RecordDataset, NDArray[np.int64]]]


def merge(packs: Sequence[Path], folder: Path, *, progress: bool = False) -> tuple[int, int]:
    """Write the images of all `packs` to `folder`; the classes of each follow those of the previous one.

    Rerun the same call to resume.

    Returns:
        Numbers of classes and images.

    Raises:
        InputError: If a pack cannot be read, or image sizes differ.
    """
    chosen: _Relabeling = []
    first = 0
    for pack in packs:
        dataset = RecordDataset(pack)
        chosen.append((dataset, first + np.arange(dataset.num_classes)))
        first += dataset.num_classes
    written = _write_merged(chosen, folder, first, "merging", progress)
    _carry_names(chosen, folder)
    return written


def split(
    pack: Path,
    train_folder: Path,
    held_out_folder: Path,
    *,
    num_identities: int,
    seed: int = 0,
    progress: bool = False,
) -> list[tuple[int, int]]:
    """Split a pack by identity: `num_identities` random classes are held out.

    Classes are renumbered in order. Classes without images are dropped.

    Returns:
        Numbers of classes and images of `train_folder` and of `held_out_folder`.

    Raises:
        InputError: If the pack cannot be read, or has too few identities.
    """
    dataset = RecordDataset(pack)
    if train_folder.resolve() == held_out_folder.resolve():
        raise InputError(f"{train_folder}: expected two different folders")
    present = np.unique(dataset.labels(progress=progress))
    if not 0 < num_identities < len(present):
        raise InputError(
            f"{num_identities} identities to hold out of {pack}; expected 1 to {len(present) - 1}, as it has {len(present)}"
        )
    places = counter_rng.permute_indices(
        counter_rng.derive_key(seed, "held out"), np.arange(num_identities), len(present)
    )
    drawn = np.isin(present, present[places])
    written = []
    for folder, classes in ((train_folder, present[~drawn]), (held_out_folder, present[drawn])):
        numbers = np.full(dataset.num_classes, -1)
        numbers[classes] = np.arange(len(classes))
        written.append(_write_merged([(dataset, numbers)], folder, len(classes), folder.name, progress))
        _carry_names([(dataset, numbers)], folder)
    return written


def select_images(
    pack: Path, folder: Path, keep_mask: NDArray[np.bool_], *, progress: bool = False
) -> tuple[int, int]:
    """Write the images of a pack that `keep_mask` `[n]` selects to `folder`.

    Class numbers do not change. Rerun the same call to resume.

    Returns:
        Numbers of classes and images.

    Raises:
        InputError: If the pack cannot be read.
    """
    dataset = RecordDataset(pack)
    labels = np.where(keep_mask, dataset.labels(progress=progress), DROP)
    written = write_relabeled(pack, folder, labels, dataset.num_classes, progress=progress)
    write_names(folder, read_names(pack))
    return written


def write_relabeled(
    pack: Path, folder: Path, labels: NDArray[np.int64], num_classes: int, *, progress: bool = False
) -> tuple[int, int]:
    """Write the images of a pack to `folder` with other labels `[n]`; images with the label DROP are removed.

    Rerun the same call to resume.

    Returns:
        Numbers of classes and images.

    Raises:
        InputError: If the pack cannot be read.
    """
    require_distinct_folders(folder, [pack])
    dataset = RecordDataset(pack)
    chosen = np.flatnonzero(labels != DROP)

    def samples(done: int) -> Iterator[EncodedSample]:
        for sample in progress_bar(chosen[done:].tolist(), "writing", enabled=progress):
            yield int(labels[sample]), dataset.encoded_image(sample)

    plan = hashlib.sha256(pack_version(dataset.path).encode() + labels.tobytes()).hexdigest()
    return resume_pack(folder, samples, plan=plan, size=len(dataset[0][0]), num_classes=num_classes)


def require_distinct_folders(folder: Path, packs: Iterable[Path]) -> None:
    """Raise InputError if the output folder is one of the packs to read."""
    if folder.resolve() in {pack.resolve() for pack in packs}:
        raise InputError(f"{folder}: expected a folder other than the input packs")


def _carry_names(chosen: _Relabeling, folder: Path) -> None:
    """Copy the names of classes from their packs."""
    names: dict[int, str] = {}
    for dataset, numbers in chosen:
        for label, name in read_names(dataset.path.parent).items():
            if label < len(numbers) and numbers[label] >= 0:
                names[int(numbers[label])] = name
    write_names(folder, names)


def _write_merged(
    relabeling: _Relabeling, folder: Path, num_classes: int, description: str, progress: bool
) -> tuple[int, int]:
    require_distinct_folders(folder, [dataset.path.parent for dataset, _ in relabeling])
    size = _common_image_size(relabeling)

    def samples(done: int) -> Iterator[EncodedSample]:
        place = 0
        for dataset, numbers in relabeling:
            for sample in progress_bar(range(len(dataset)), description, enabled=progress):
                number = int(numbers[dataset.label(sample)])
                if number >= 0:
                    place += 1
                    if place > done:
                        yield number, dataset.encoded_image(sample)

    return resume_pack(folder, samples, plan=_plan_hash(relabeling), size=size, num_classes=num_classes)


def _common_image_size(relabeling: _Relabeling) -> int:
    """Return the size of all images, checking the first image of each pack."""
    height = None
    for dataset, _ in relabeling:
        found = dataset[0][0].shape[:2]
        expected = (height or found[0],) * 2
        if found != expected:
            raise InputError(
                f"{dataset.path}: images of {found[0]} x {found[1]}, expected {expected[0]} x {expected[1]}"
            )
        height = found[0]
    assert height is not None
    return height


def _plan_hash(relabeling: _Relabeling) -> str:
    digest = hashlib.sha256()
    for dataset, numbers in relabeling:
        digest.update(pack_version(dataset.path).encode())
        digest.update(numbers.tobytes())
    return digest.hexdigest()
