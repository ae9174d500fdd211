"""Cleaning of a pack: removal of images far from their class, according to a run that was trained on it.

A run with sub-centers separates label noise: the sub-center with the most images represents the class, and
images far from it are dropped (Sub-center ArcFace, Deng et al., ECCV 2020).

Shapes:
    C: classes
    K: sub-centers per class
    n: images
    D: embedding size
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
from partialfc.data.fingerprint import pack_fingerprint
from partialfc.data.images import ImageArray
from partialfc.data.packs.merge_split import require_distinct_folders, select_images
from partialfc.data.packs.names import read_names
from partialfc.data.stored_embeddings import StoredEmbeddings
from partialfc.errors import InputError
from partialfc.inference.embed_pack import embed_pack
from partialfc.inference.recognizer import Recognizer
from partialfc.inference.stored_centers import read_centers
from partialfc.inference.weights import resolve_checkpoint
from partialfc.runtime.files import atomic_write

DROPPED_FILE, GRID_FILE = "dropped.csv", "dropped.png"

_CLASSES = 1 << 16  # classes whose centers are in memory at the same time
_IMAGES = 1 << 13  # images whose centers are gathered at the same time
_SHOWN, _KEPT, _DROPPED = 20, 4, 8  # classes in the grid, and images of each


@dataclass(frozen=True)
class ImageAngles:
    """Angles of a pack's images `[n]`."""

    labels: NDArray[np.int64]
    nearest_subcenter: NDArray[np.uint8]  # nearest sub-center of its class
    angles: NDArray[np.float32]  # to the dominant sub-center of its class, in degrees


def clean_pack(
    recognizer: Recognizer, run: Path, pack: Path, out: Path, *, max_angle: float, progress: bool = False
) -> tuple[int, int]:
    """Write a pack to `out` without the images whose angle to their class exceeds `max_angle` degrees.

    Dropped images are listed in DROPPED_FILE; GRID_FILE shows some of them next to retained ones. Class
    numbers do not change. Rerun the same call to resume. Memory: the centers of 65,536 classes, and some
    bytes per image.

    Args:
        recognizer: Model of the run.
        run: Run that was trained on this pack.
        pack: Pack to clean.
        out: Folder of the cleaned pack.
        max_angle: Maximum angle in degrees.
        progress: Whether to show a progress bar.

    Returns:
        Numbers of retained and dropped images.

    Raises:
        InputError: If the run was not trained on the pack.
    """
    require_distinct_folders(out, [pack])
    if recognizer.provenance is None:
        raise InputError(f"{run}: expected a run trained on {pack}, with its class centers")
    if recognizer.provenance.pack != pack_fingerprint(pack):
        raise InputError(f"{pack}: not the pack that {run} was trained on")
    folder = out / ".embeddings"
    embed_pack(recognizer, run, pack, folder, progress=progress)
    dataset = RecordDataset(pack)
    labels = dataset.labels(progress=progress)
    places = compute_image_angles(
        StoredEmbeddings(folder), labels, resolve_checkpoint(run), recognizer.provenance
    )
    kept = places.angles <= max_angle
    if not kept.any():
        raise InputError(f"{pack}: no image is within {max_angle:g} degrees of its class")
    _write_listing(out / DROPPED_FILE, dataset, places, kept)
    _write_grid(out / GRID_FILE, dataset, places, kept)
    select_images(pack, out, kept, progress=progress)
    shutil.rmtree(folder)
    return int(kept.sum()), int((~kept).sum())


def compute_image_angles(
    embeddings: StoredEmbeddings, labels: NDArray[np.int64], checkpoint: Path, provenance: Provenance
) -> ImageAngles:
    """Return the angles of images `[n]` to the class centers of a checkpoint."""
    centers, num_classes = provenance.config.head.subcenters, provenance.num_classes
    order = np.argsort(labels, kind="stable")
    edges = [*range(0, num_classes, _CLASSES), num_classes]
    nearest, degrees = np.zeros(len(labels), np.uint8), np.zeros(len(labels), np.float32)
    for first, last in itertools.pairwise(edges):
        block = order[slice(*np.searchsorted(labels[order], [first, last]))]
        rows = read_centers(checkpoint, first, last).float()
        cosines = _subcenter_cosines(
            embeddings, block, labels[block] - first, normalize(rows.view(last - first, centers, -1), dim=2)
        )
        winners = cosines.argmax(axis=1)
        counts = np.bincount((labels[block] - first) * centers + winners, minlength=(last - first) * centers)
        dominant = counts.reshape(-1, centers).argmax(axis=1)[labels[block] - first]
        nearest[block] = winners
        degrees[block] = np.degrees(np.arccos(cosines[np.arange(len(block)), dominant].clip(-1, 1)))
    return ImageAngles(labels, nearest, degrees)


def _subcenter_cosines(
    embeddings: StoredEmbeddings, block: NDArray[np.int64], rows: NDArray[np.int64], centers: torch.Tensor
) -> NDArray[np.float32]:
    """Return cosines `[n, K]` of images with the sub-centers `[C, K, D]` of their classes, at indices `rows`."""
    found = np.empty((len(block), centers.shape[1]), np.float32)
    for start in range(0, len(block), _IMAGES):
        part = slice(start, start + _IMAGES)
        own = torch.from_numpy(embeddings[block[part]])[:, None]
        found[part] = torch.linalg.vecdot(centers[torch.from_numpy(rows[part])], own).numpy()
    return found


def _write_listing(
    path: Path, dataset: RecordDataset, angles: ImageAngles, keep_mask: NDArray[np.bool_]
) -> None:
    """List the dropped images, largest angle first."""
    dropped = np.flatnonzero(~keep_mask)
    with atomic_write(path) as temporary, temporary.open("w", newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        names = read_names(dataset.path.parent)
        writer.writerow(["key", "class", "degrees", "center", "name"])
        for image in dropped[np.argsort(-angles.angles[dropped], kind="stable")].tolist():
            degrees = f"{angles.angles[image]:.1f}"
            label = int(angles.labels[image])
            writer.writerow(
                [dataset.key(image), label, degrees, angles.nearest_subcenter[image], names.get(label, "")]
            )


def _write_grid(
    path: Path, dataset: RecordDataset, angles: ImageAngles, keep_mask: NDArray[np.bool_]
) -> None:
    """Draw one row for each of the classes that lose most images: retained images, a gap, dropped images."""
    counts = np.bincount(angles.labels[~keep_mask])
    most = np.argsort(-counts, kind="stable")[: min(_SHOWN, np.count_nonzero(counts))]
    faces = [face for label in most.tolist() for face in _iter_row(dataset, angles, keep_mask, label)]
    if faces:
        images.write(path, images.image_grid(faces, _KEPT + 1 + _DROPPED, len(most)))


def _iter_row(
    dataset: RecordDataset, places: ImageAngles, kept: NDArray[np.bool_], label: int
) -> Iterator[ImageArray]:
    own = np.flatnonzero(places.labels == label)
    own = own[np.argsort(places.angles[own], kind="stable")]
    white = np.full_like(dataset[0][0], 255)
    for chosen, width in ((own[kept[own]][:_KEPT], _KEPT + 1), (own[~kept[own]][::-1][:_DROPPED], _DROPPED)):
        yield from (dataset[image][0] for image in chosen.tolist())
        yield from [white] * (width - len(chosen))
