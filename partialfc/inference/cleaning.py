"""Which images of a pack are none of their class, as a run that was trained on it sees them; and the pack without them.

A run with sub-centres has wrong labels gathered apart: of each class the centre with the most images counts, and images far
from it are dropped (Sub-center ArcFace, Deng et al., ECCV 2020).

Legend: C classes, K centres of each, n images, D width.
"""

import csv
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from partialfc.config.provenance import Provenance
from partialfc.data import RecordDataset, images
from partialfc.data.fingerprint import fingerprint
from partialfc.data.images import Pixels
from partialfc.data.packs.merge_split import check_apart, select
from partialfc.data.packs.names import read_names
from partialfc.data.stored_embeddings import PackEmbeddings
from partialfc.errors import InputError
from partialfc.inference.embed_pack import embed_pack
from partialfc.inference.recognizer import Recognizer
from partialfc.inference.stored_centers import read_centers
from partialfc.inference.weights import newest
from partialfc.runtime.files import atomic_write

LISTING, SHEET = "dropped.csv", "dropped.png"

_CLASSES = 1 << 16  # whose centres are in memory at once
_IMAGES = 1 << 13  # whose centres are gathered at once
_SHOWN, _KEPT, _DROPPED = 20, 4, 8  # classes of the sheet, and images of each


@dataclass(frozen=True)
class Places:
    """Where a pack's images [n] stand."""

    labels: NDArray[np.int64]
    nearest: NDArray[np.uint8]  # which centre of its class
    degrees: NDArray[np.float32]  # from the centre of its class that most of its images are nearest to


def clean(
    recognizer: Recognizer, run: Path, pack: Path, out: Path, *, degrees: float, progress: bool = False
) -> tuple[int, int]:
    """Write to `out` the pack without the images that are farther than `degrees` from their class; returns how many images
    stay, and how many do not: those are in the file LISTING there, some of them beside those that stay in SHEET. Classes keep
    their numbers. run: where the recognizer is from, trained on this pack. May be repeated where it was interrupted.
    Memory: the centres of 65,536 classes, and some bytes an image. InputError where run and pack do not go together.
    """
    check_apart(out, [pack])
    if recognizer.provenance is None:
        raise InputError(f"{run}: no run; wanted one that was trained on {pack}, with its class centres")
    if recognizer.provenance.pack != fingerprint(pack):
        raise InputError(f"{pack}: not the pack that {run} was trained on")
    folder = out / ".embeddings"
    embed_pack(recognizer, run, pack, folder, progress=progress)
    dataset = RecordDataset(pack)
    labels = dataset.labels(progress=progress)
    places = placed(PackEmbeddings(folder), labels, newest(run), recognizer.provenance)
    kept = places.degrees <= degrees
    if not kept.any():
        raise InputError(f"{pack}: no image is within {degrees:g} degrees of its class")
    _list(out / LISTING, dataset, places, kept)
    _draw(out / SHEET, dataset, places, kept)
    select(pack, out, kept, progress=progress)
    shutil.rmtree(folder)
    return int(kept.sum()), int((~kept).sum())


def placed(
    embeddings: PackEmbeddings, labels: NDArray[np.int64], checkpoint: Path, provenance: Provenance
) -> Places:
    """Where images [n] with `labels` stand among the class centres of a checkpoint."""
    centers, num_classes = provenance.config.head.subcenters, provenance.num_classes
    order = np.argsort(labels, kind="stable")
    edges = [*range(0, num_classes, _CLASSES), num_classes]
    nearest, degrees = np.zeros(len(labels), np.uint8), np.zeros(len(labels), np.float32)
    for first, last in itertools.pairwise(edges):
        block = order[slice(*np.searchsorted(labels[order], [first, last]))]
        rows = read_centers(checkpoint, first, last).float()
        cosines = _cosines(
            embeddings, block, labels[block] - first, normalize(rows.view(last - first, centers, -1), dim=2)
        )
        winners = cosines.argmax(axis=1)
        counts = np.bincount((labels[block] - first) * centers + winners, minlength=(last - first) * centers)
        dominant = counts.reshape(-1, centers).argmax(axis=1)[labels[block] - first]
        nearest[block] = winners
        degrees[block] = np.degrees(np.arccos(cosines[np.arange(len(block)), dominant].clip(-1, 1)))
    return Places(labels, nearest, degrees)


def _cosines(
    embeddings: PackEmbeddings, block: NDArray[np.int64], rows: NDArray[np.int64], centers: torch.Tensor
) -> NDArray[np.float32]:
    """Of images with the centres [C, K, D] of their classes, which stand at `rows`: [n, K]."""
    found = np.empty((len(block), centers.shape[1]), np.float32)
    for start in range(0, len(block), _IMAGES):
        part = slice(start, start + _IMAGES)
        own = torch.from_numpy(embeddings[block[part]])[:, None]
        found[part] = torch.linalg.vecdot(centers[torch.from_numpy(rows[part])], own).numpy()
    return found


def _list(path: Path, dataset: RecordDataset, places: Places, kept: NDArray[np.bool_]) -> None:
    """The images that do not stay, the farthest first."""
    dropped = np.flatnonzero(~kept)
    with atomic_write(path) as temporary, temporary.open("w", newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        names = read_names(dataset.path.parent)
        writer.writerow(["key", "class", "degrees", "centre", "name"])
        for image in dropped[np.argsort(-places.degrees[dropped], kind="stable")].tolist():
            degrees = f"{places.degrees[image]:.1f}"
            label = int(places.labels[image])
            writer.writerow([dataset.key(image), label, degrees, places.nearest[image], names.get(label, "")])


def _draw(path: Path, dataset: RecordDataset, places: Places, kept: NDArray[np.bool_]) -> None:
    """A row for each of the classes that lose most: images that stay, a gap, images that do not."""
    counts = np.bincount(places.labels[~kept])
    most = np.argsort(-counts, kind="stable")[: min(_SHOWN, np.count_nonzero(counts))]
    faces = [face for label in most.tolist() for face in _row(dataset, places, kept, label)]
    if faces:
        images.write(path, images.sheet(faces, _KEPT + 1 + _DROPPED, len(most)))


def _row(dataset: RecordDataset, places: Places, kept: NDArray[np.bool_], label: int) -> Iterator[Pixels]:
    own = np.flatnonzero(places.labels == label)
    own = own[np.argsort(places.degrees[own], kind="stable")]
    white = np.full_like(dataset[0][0], 255)
    for chosen, width in ((own[kept[own]][:_KEPT], _KEPT + 1), (own[~kept[own]][::-1][:_DROPPED], _DROPPED)):
        yield from (dataset[image][0] for image in chosen.tolist())
        yield from [white] * (width - len(chosen))
