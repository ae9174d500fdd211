"""Relabeling of a pack: duplicate identities are merged and mixed ones split, according to a model.

Shapes:
    C: identities
    n: images
    D: embedding size
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from partialfc.data import RecordDataset, images
from partialfc.data.images import ImageArray
from partialfc.data.packs.merge_split import require_distinct_folders, write_relabeled
from partialfc.data.packs.names import read_names, write_names
from partialfc.data.stored_embeddings import StoredEmbeddings
from partialfc.errors import InputError
from partialfc.inference.class_means import compute_class_means
from partialfc.inference.embed_pack import embed_pack
from partialfc.inference.recognizer import Recognizer
from partialfc.runtime.files import atomic_write
from partialfc.runtime.progress import progress_bar

EMBEDDINGS_FOLDER, LISTING_FILE, GRID_FILE, MAP_FILE = (
    "embeddings",
    "identities.csv",
    "identities.png",
    "map.txt",
)

_ROWS, _COLUMNS = 1 << 11, 1 << 15  # block of the similarity matrix of all means
_MAX_KMEANS_ITERATIONS = 20
_MIN_PART_SIZE = 2  # images of a part
_MIN_PART_COHERENCE = (
    0.5  # minimum mean cosine of a part's images with its mean; below, it is no single person
)
_MAX_PAIRS_PER_IDENTITY = 4  # duplicate pairs per identity; a model that finds more does not discriminate
_SHOWN, _FACES = 20, 7  # rows of each kind in the grid, and images on each side of a row

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class DuplicateIdentities:
    """Two identities of one person."""

    first: int
    second: int
    cosine: float  # of their means


@dataclass(frozen=True)
class MixedIdentity:
    """Identity that contains two people."""

    label: int
    part: Labels  # images of the smaller part, in the pack
    cosine: float  # of the means of both parts


@dataclass(frozen=True)
class RelabelResult:
    """Result of relabeling a pack."""

    num_merged: int  # identities merged into others
    num_split: int  # identities split in two
    num_identities: int  # of the new pack
    num_images: int


def relabel_pack(
    recognizer: Recognizer,
    weights: Path,
    pack: Path,
    out: Path,
    *,
    merge_threshold: float,
    split_threshold: float,
    progress: bool = False,
) -> RelabelResult:
    """Write a pack to `out` with merged and split identities.

    Identities are merged if the cosine of their means is at least `merge_threshold`. An identity is split if
    its images form two parts whose means have a cosine of at most `split_threshold`; the smaller part becomes
    a new identity. A mixed identity is not merged, since its mean is meaningless.

    LISTING contains all changes, GRID_FILE shows the most doubtful ones of each kind. MAP has a line for each
    new identity in the format of `init.centers.map`: its label in `pack`, or `new`. EMBEDDINGS_FOLDER stores
    the embeddings of the pack. Rerun the same call to resume. Memory: float32 `[C, D]` twice, 0.3 GiB, and
    some bytes per image.

    Args:
        recognizer: Model.
        weights: Source of the model.
        pack: Pack to relabel.
        out: Folder of the new pack.
        merge_threshold: Minimum cosine of duplicates.
        split_threshold: Maximum cosine of the parts of a mixed identity.
        progress: Whether to show a progress bar.

    Returns:
        Counts of the new pack.

    Raises:
        InputError: If an image cannot be read, or the model does not discriminate.
    """
    require_distinct_folders(out, [pack])
    dataset = RecordDataset(pack)
    embed_pack(recognizer, weights, pack, out / EMBEDDINGS_FOLDER, progress=progress)
    embeddings = StoredEmbeddings(out / EMBEDDINGS_FOLDER)
    labels = dataset.labels(progress=progress)
    mixed = list(find_mixed_identities(embeddings, labels, split_threshold, progress=progress))
    means = compute_class_means(embeddings, labels, dataset.num_classes)
    means[[it.label for it in mixed]] = 0
    pairs = find_duplicate_identities(
        torch.from_numpy(means).to(recognizer.device), merge_threshold, progress=progress
    )
    most = _MAX_PAIRS_PER_IDENTITY * dataset.num_classes
    alike = list(islice(pairs, most))
    if len(alike) == most:
        raise InputError(
            f"{pack}: {most} pairs of {dataset.num_classes} identities have a cosine of at least {merge_threshold:g}; "
            "pass a higher --merge-threshold, or use a better model"
        )
    new, origins = compute_labels(labels, dataset.num_classes, alike, mixed)
    _write_listing(out / LISTING_FILE, dataset, alike, mixed)
    _write_grid(out / GRID_FILE, dataset, labels, alike, mixed)
    names = read_names(pack)
    kept = {label: names[it] for label, it in enumerate(origins) if it in names}
    with atomic_write(out / MAP_FILE) as temporary, temporary.open("w", errors="surrogateescape") as file:
        for label, it in enumerate(origins):
            beside = f"\t{kept[label]!a}" if label in kept else ""
            file.write(f"{'new' if it is None else it}{beside}\n")
    identities, count = write_relabeled(pack, out, new, len(origins), progress=progress)
    write_names(out, kept)
    return RelabelResult(dataset.num_classes + len(mixed) - len(origins), len(mixed), identities, count)


def find_duplicate_identities(
    means: torch.Tensor, min_cosine: float, *, progress: bool = False
) -> Iterator[DuplicateIdentities]:
    """Yield pairs of duplicate identities, the lower label first, given L2-normalized means `[C, D]`.

    Computed on the device of the means, in time quadratic in C.
    """
    starts = range(0, len(means), _ROWS)
    for start in progress_bar(starts, "comparing identities", enabled=progress, total=len(starts)):
        block = means[start : start + _ROWS]
        for other in range(start // _COLUMNS * _COLUMNS, len(means), _COLUMNS):
            cosines = block @ means[other : other + _COLUMNS].T
            rows, columns = torch.nonzero(cosines >= min_cosine, as_tuple=True)
            found = zip(rows.tolist(), columns.tolist(), cosines[rows, columns].tolist(), strict=True)
            for row, column, value in found:
                if start + row < other + column:
                    yield DuplicateIdentities(start + row, other + column, value)


def find_mixed_identities(
    embeddings: StoredEmbeddings, labels: Labels, max_cosine: float, *, progress: bool = False
) -> Iterator[MixedIdentity]:
    """Yield the identities whose images form two parts with means of a cosine of at most `max_cosine`.

    Each part has at least two images of one person.
    """
    order = np.argsort(labels, kind="stable")
    known, starts = np.unique(labels[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    several = np.flatnonzero(ends - starts >= 2 * _MIN_PART_SIZE)
    for place in progress_bar(several.tolist(), "dividing identities", enabled=progress):
        own = order[starts[place] : ends[place]]
        found = split_in_two(embeddings[own])
        if found is not None and found[1] <= max_cosine:
            yield MixedIdentity(int(known[place]), own[found[0]], found[1])


def split_in_two(embeddings: NDArray[np.float32]) -> tuple[NDArray[np.bool_], float] | None:
    """Return a mask of the smaller of two parts of unit embeddings `[n, D]`, and the cosine of the parts' means.

    Spherical k-means, initialized with the two embeddings that are farthest from all others and from each
    other. None if a part has too few images or is incoherent.
    """
    first = embeddings[np.argmin(embeddings @ embeddings.sum(axis=0))]
    second = embeddings[np.argmin(embeddings @ first)]
    part = np.zeros(len(embeddings), bool)
    for _ in range(_MAX_KMEANS_ITERATIONS):
        before, part = part, embeddings @ second > embeddings @ first
        if (part == before).all() or part.all():
            break
        first, second = (
            it / np.linalg.norm(it) for it in (embeddings[~part].sum(0), embeddings[part].sum(0))
        )
    smaller = part if 2 * part.sum() <= len(part) else ~part
    if smaller.sum() < _MIN_PART_SIZE:
        return None
    coherent = min((embeddings[~part] @ first).mean(), (embeddings[part] @ second).mean())
    return (smaller, float(first @ second)) if coherent >= _MIN_PART_COHERENCE else None


def compute_labels(
    labels: Labels, num_classes: int, duplicates: list[DuplicateIdentities], mixed: list[MixedIdentity]
) -> tuple[Labels, list[int | None]]:
    """Return new labels `[n]`, and the old label of each new identity; None if it was split off.

    Merged identities get the lowest number; the others move up; split-off parts come last.
    """
    roots = np.arange(num_classes)
    for pair in duplicates:
        low, high = sorted((roots[pair.first], roots[pair.second]))
        roots[roots == high] = low
    kept, numbers = np.unique(roots, return_inverse=True)
    new = numbers[labels]
    for place, one in enumerate(mixed):
        new[one.part] = len(kept) + place
    return new, [*kept.tolist(), *([None] * len(mixed))]


def _write_listing(
    path: Path, dataset: RecordDataset, duplicates: list[DuplicateIdentities], mixed: list[MixedIdentity]
) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "found", "other class or keys", "cosine"])
        for pair in duplicates:
            writer.writerow([pair.first, "one person", pair.second, f"{pair.cosine:.4f}"])
        for one in mixed:
            keys = " ".join(str(dataset.key(it)) for it in one.part.tolist())
            writer.writerow([one.label, "two people", keys, f"{one.cosine:.4f}"])


def _write_grid(
    path: Path,
    dataset: RecordDataset,
    labels: Labels,
    duplicates: list[DuplicateIdentities],
    mixed: list[MixedIdentity],
) -> None:
    """Draw a row for each change, the two sides separated by a gap. No file without changes."""
    rows = [
        (np.flatnonzero(labels == it.first), np.flatnonzero(labels == it.second))
        for it in sorted(duplicates, key=lambda it: it.cosine)[:_SHOWN]
    ]
    rows += [
        (np.setdiff1d(np.flatnonzero(labels == it.label), it.part), it.part)
        for it in sorted(mixed, key=lambda it: -it.cosine)[:_SHOWN]
    ]
    white = np.full_like(dataset[0][0], 255)
    faces: list[ImageArray] = []
    for left, right in rows:
        for side, width in ((left, _FACES + 1), (right, _FACES)):
            shown = [dataset[it][0] for it in side[:_FACES].tolist()]
            faces += shown + [white] * (width - len(shown))
    path.unlink(missing_ok=True)
    if faces:
        images.write(path, images.image_grid(faces, 2 * _FACES + 1, len(rows)))
