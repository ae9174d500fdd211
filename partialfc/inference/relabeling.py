"""Identities of a pack that are one person, and such as are two, as a network sees them; and the pack with other labels.

Legend: C identities, n images, D width.
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
from partialfc.data.images import Pixels
from partialfc.data.packs.merge_split import check_apart, with_labels
from partialfc.data.packs.names import read_names, write_names
from partialfc.data.stored_embeddings import PackEmbeddings
from partialfc.errors import InputError
from partialfc.inference.class_means import class_means
from partialfc.inference.embed_pack import embed_pack
from partialfc.inference.recognizer import Recognizer
from partialfc.runtime.files import atomic_write
from partialfc.runtime.progress import tracked

EMBEDDINGS, LISTING, SHEET, MAP = "embeddings", "identities.csv", "identities.png", "map.txt"

_ROWS, _COLUMNS = 1 << 11, 1 << 15  # of the product of all means with all that is in memory at once
_TURNS = 20  # of the search for two parts, at most
_LEAST = 2  # images of a part
_COHERENT = 0.5  # the mean cosine of a part's images with its mean, at least: else it is of nobody
_MOST = 4  # pairs that are alike, for each identity: a network that finds so many tells nobody apart
_SHOWN, _FACES = 20, 7  # rows of each kind in the sheet, and images of each side of a row

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Alike:
    """Two identities that are one person."""

    first: int
    second: int
    cosine: float  # of their means


@dataclass(frozen=True)
class Mixed:
    """An identity that is two people."""

    label: int
    part: Labels  # the smaller part's images, in the pack
    cosine: float  # of the parts' means


@dataclass(frozen=True)
class Relabelled:
    """What became of a pack."""

    merged: int  # identities that are in others now
    split: int  # identities that are two now
    identities: int  # that the new pack has
    images: int


def relabel(
    recognizer: Recognizer,
    weights: Path,
    pack: Path,
    out: Path,
    *,
    merge: float,
    split: float,
    progress: bool = False,
) -> Relabelled:
    """Write to `out` the pack with identities merged whose means have a cosine of `merge` or more, and those split whose images
    fall into two parts with a cosine of `split` or less (the smaller part becomes a new identity). weights: where the
    recognizer is from. Of a mixed identity the mean means nothing: it is not merged.

    LISTING there has all of them, SHEET shows the most doubtful of each kind, MAP has a line for each new identity as
    `init.centers.map` takes it: its label in `pack`, or new; EMBEDDINGS keeps the pack's. May be repeated where it was interrupted. Memory: float32 [C, D]
    twice, 0.3 GiB, and some bytes an image. InputError where an image cannot be read, or the network finds
    everybody alike.
    """
    check_apart(out, [pack])
    dataset = RecordDataset(pack)
    embed_pack(recognizer, weights, pack, out / EMBEDDINGS, progress=progress)
    embeddings = PackEmbeddings(out / EMBEDDINGS)
    labels = dataset.labels(progress=progress)
    mixed = list(find_mixed(embeddings, labels, split, progress=progress))
    means = class_means(embeddings, labels, dataset.num_classes)
    means[[it.label for it in mixed]] = 0
    pairs = find_alike(torch.from_numpy(means).to(recognizer.device), merge, progress=progress)
    most = _MOST * dataset.num_classes
    alike = list(islice(pairs, most))
    if len(alike) == most:
        raise InputError(
            f"{pack}: {most} pairs of {dataset.num_classes} identities are alike by {merge:g}; wanted a higher --merge, "
            "or a network that tells them apart"
        )
    new, origins = relabelled(labels, dataset.num_classes, alike, mixed)
    _list(out / LISTING, dataset, alike, mixed)
    _draw(out / SHEET, dataset, labels, alike, mixed)
    names = read_names(pack)
    kept = {label: names[it] for label, it in enumerate(origins) if it in names}
    with atomic_write(out / MAP) as temporary, temporary.open("w", errors="surrogateescape") as file:
        for label, it in enumerate(origins):
            beside = f"\t{kept[label]!a}" if label in kept else ""
            file.write(f"{'new' if it is None else it}{beside}\n")
    identities, count = with_labels(pack, out, new, len(origins), progress=progress)
    write_names(out, kept)
    return Relabelled(dataset.num_classes + len(mixed) - len(origins), len(mixed), identities, count)


def find_alike(means: torch.Tensor, cosine: float, *, progress: bool = False) -> Iterator[Alike]:
    """Pairs of identities, the lower label first, given their means [C, D] of length 1. Computes where the means are, in time
    that grows with the square of C.
    """
    starts = range(0, len(means), _ROWS)
    for start in tracked(starts, "comparing identities", shown=progress, total=len(starts)):
        block = means[start : start + _ROWS]
        for other in range(start // _COLUMNS * _COLUMNS, len(means), _COLUMNS):
            cosines = block @ means[other : other + _COLUMNS].T
            rows, columns = torch.nonzero(cosines >= cosine, as_tuple=True)
            found = zip(rows.tolist(), columns.tolist(), cosines[rows, columns].tolist(), strict=True)
            for row, column, value in found:
                if start + row < other + column:
                    yield Alike(start + row, other + column, value)


def find_mixed(
    embeddings: PackEmbeddings, labels: Labels, cosine: float, *, progress: bool = False
) -> Iterator[Mixed]:
    """Identities whose images fall into two parts, each of two images at least that are of one person, whose means have a cosine
    of `cosine` or less.
    """
    order = np.argsort(labels, kind="stable")
    known, starts = np.unique(labels[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    several = np.flatnonzero(ends - starts >= 2 * _LEAST)
    for place in tracked(several.tolist(), "dividing identities", shown=progress):
        own = order[starts[place] : ends[place]]
        found = halves(embeddings[own])
        if found is not None and found[1] <= cosine:
            yield Mixed(int(known[place]), own[found[0]], found[1])


def halves(embeddings: NDArray[np.float32]) -> tuple[NDArray[np.bool_], float] | None:
    """Which of unit embeddings [n, D] are the smaller of two parts, and the cosine of the parts' means: spherical k-means from the
    two that are farthest from all others and from each other. None where a part has too few images, or is no one's.
    """
    first = embeddings[np.argmin(embeddings @ embeddings.sum(axis=0))]
    second = embeddings[np.argmin(embeddings @ first)]
    part = np.zeros(len(embeddings), bool)
    for _ in range(_TURNS):
        before, part = part, embeddings @ second > embeddings @ first
        if (part == before).all() or part.all():
            break
        first, second = (
            it / np.linalg.norm(it) for it in (embeddings[~part].sum(0), embeddings[part].sum(0))
        )
    smaller = part if 2 * part.sum() <= len(part) else ~part
    if smaller.sum() < _LEAST:
        return None
    coherent = min((embeddings[~part] @ first).mean(), (embeddings[part] @ second).mean())
    return (smaller, float(first @ second)) if coherent >= _COHERENT else None


def relabelled(
    labels: Labels, num_classes: int, alike: list[Alike], mixed: list[Mixed]
) -> tuple[Labels, list[int | None]]:
    """New labels [n], and of each new identity its old label; None where it is split off another. Merged ones have the number of
    the lowest; the others move up; those that are split off come last.
    """
    roots = np.arange(num_classes)
    for pair in alike:
        low, high = sorted((roots[pair.first], roots[pair.second]))
        roots[roots == high] = low
    kept, numbers = np.unique(roots, return_inverse=True)
    new = numbers[labels]
    for place, one in enumerate(mixed):
        new[one.part] = len(kept) + place
    return new, [*kept.tolist(), *([None] * len(mixed))]


def _list(path: Path, dataset: RecordDataset, alike: list[Alike], mixed: list[Mixed]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "found", "other class or keys", "cosine"])
        for pair in alike:
            writer.writerow([pair.first, "one person", pair.second, f"{pair.cosine:.4f}"])
        for one in mixed:
            keys = " ".join(str(dataset.key(it)) for it in one.part.tolist())
            writer.writerow([one.label, "two people", keys, f"{one.cosine:.4f}"])


def _draw(path: Path, dataset: RecordDataset, labels: Labels, alike: list[Alike], mixed: list[Mixed]) -> None:
    """A row for each, one of the two on either side of a gap. No file where there are none."""
    rows = [
        (np.flatnonzero(labels == it.first), np.flatnonzero(labels == it.second))
        for it in sorted(alike, key=lambda it: it.cosine)[:_SHOWN]
    ]
    rows += [
        (np.setdiff1d(np.flatnonzero(labels == it.label), it.part), it.part)
        for it in sorted(mixed, key=lambda it: -it.cosine)[:_SHOWN]
    ]
    white = np.full_like(dataset[0][0], 255)
    faces: list[Pixels] = []
    for left, right in rows:
        for side, width in ((left, _FACES + 1), (right, _FACES)):
            shown = [dataset[it][0] for it in side[:_FACES].tolist()]
            faces += shown + [white] * (width - len(shown))
    path.unlink(missing_ok=True)
    if faces:
        images.write(path, images.sheet(faces, 2 * _FACES + 1, len(rows)))
