"""What of evaluation sets stands in a training pack: images, by perceptual hashes, and people, by a network; and what a set
says without them.

Legend: n images of a set, N of the pack, C classes, D width.
"""

import csv
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from partialfc.data import RecordDataset, images
from partialfc.data.images import Encoded, Pixels
from partialfc.data.packs.merge_split import check_apart
from partialfc.data.packs.shared_images import pack_hashes
from partialfc.data.perceptual_hash import distances, hashed, near_pairs
from partialfc.data.stored_embeddings import PackEmbeddings
from partialfc.errors import InputError
from partialfc.evaluation.sets import EvaluationSet, Scores
from partialfc.inference.batching import embedded
from partialfc.inference.class_means import class_means
from partialfc.inference.embed_pack import embed_pack
from partialfc.inference.recognizer import Recognizer
from partialfc.runtime.files import atomic_write
from partialfc.runtime.progress import in_order, tracked

EMBEDDINGS = "embeddings"  # folder for the pack's

_SIDE = 112  # pixels at which images are hashed and shown
_COLUMNS, _SHOWN = 16, 64  # of a sheet: pairs in a row, and of a kind
_COSINES = 1 << 24  # at a time

Kind = Literal["bytes", "hash", "person"]


class Comparable(EvaluationSet, Protocol):
    """An evaluation set that remains one without some of its images."""

    def encoded(self, index: int) -> Encoded:
        """Image `index` as it is stored."""

    def place(self, index: int) -> str:
        """Where image `index` is, for people."""

    def without(self, dropped: Collection[int]) -> tuple[Self, list[int]]:
        """The set without these images, and without what cannot be compared once they are gone; and which of its images it has."""


@dataclass(frozen=True)
class Match:
    """An image of a set, and one of the pack that is the same, or shows the same person."""

    image: int
    sample: int
    kind: Kind
    measure: float  # bits in which the hashes differ; of a person the cosine of the image and the mean of the class


@dataclass(frozen=True)
class Overlap:
    """What a set and the pack have in common."""

    matches: list[Match]  # at most one of each image as an image, and one as a person
    scores: dict[str, Scores]  # whole, and without what it shares; empty without a judge

    def count(self, *kinds: Kind) -> int:
        """Of how many images of the set something is in the pack."""
        return len({it.image for it in self.matches if it.kind in kinds})


@dataclass(frozen=True)
class Judge:
    """A network that tells people, and where it is from."""

    recognizer: Recognizer
    weights: Path
    cosine: float  # of an image and the mean of a class, from which they are one person


def find_overlaps(
    pack: Path, sets: Sequence[Comparable], out: Path, judge: Judge | None = None, *, progress: bool = False
) -> dict[str, Overlap]:
    """What each set has in common with a pack, by its name; people only with a judge. Writes to the folder `out`, of each set, all
    matches to NAME.csv, and to NAME.png the most doubtful ones, the set's image above the pack's; and the pack's embeddings,
    for a later call. A call that was interrupted while it embedded is gone on with. Memory: 100 bytes an image; with a judge
    the mean of each class, float32 [C, D], twice. InputError where an image cannot be read.
    """
    check_apart(out, [pack])
    out.mkdir(parents=True, exist_ok=True)  # before hours of work
    dataset = RecordDataset(pack)
    same = {it.name: list(_same_images(it, dataset, found)) for it, found in _near(sets, dataset, progress)}
    people: dict[str, list[Match]] = {it.name: [] for it in sets}
    scores: dict[str, dict[str, Scores]] = {it.name: {} for it in sets}
    if judge:
        embed_pack(judge.recognizer, judge.weights, pack, out / EMBEDDINGS, progress=progress)
        of_pack = PackEmbeddings(out / EMBEDDINGS)
        labels = dataset.labels(progress=progress)
        means = class_means(of_pack, labels, dataset.num_classes)
        for one in sets:
            embeddings = _embedded(judge.recognizer, one, progress)
            people[one.name] = list(_same_people(embeddings, of_pack, labels, means, judge.cosine))
            scores[one.name] = _scored(one, embeddings, same[one.name], people[one.name])
    for one in sets:
        _list(out / f"{one.name}.csv", one, dataset, same[one.name] + people[one.name])
        _draw(out / f"{one.name}.png", one, dataset, [same[one.name], people[one.name]])
    return {it.name: Overlap(same[it.name] + people[it.name], scores[it.name]) for it in sets}


Near = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]  # images of a set, of the pack, bits


def _near(
    sets: Sequence[Comparable], dataset: RecordDataset, progress: bool
) -> Iterator[tuple[Comparable, Near]]:
    """Each set, and which of its images are near which of the pack; the nearest of an image first."""
    both = pack_hashes(dataset, mirrored=True, progress=progress)
    for one in sets:
        read = partial(one.pixels, size=_SIDE)
        ours = hashed(read, len(one), f"reading {one.name}", progress=progress)
        image, place = near_pairs(ours, both)
        bits = distances(ours[image], both[place])
        order = np.lexsort((place, bits, image))
        yield one, (image[order], place[order] % len(dataset), bits[order])


def _same_images(one: Comparable, dataset: RecordDataset, near: Near) -> Iterator[Match]:
    """The nearest of each image; of those that are equally near, one of the same bytes."""
    images_of, samples, bits = near
    for image, start in zip(*(it.tolist() for it in np.unique(images_of, return_index=True)), strict=True):
        end = np.searchsorted(images_of, image, "right")
        stored = bytes(one.encoded(image))
        nearest = samples[start:end][bits[start:end] == bits[start]].tolist()
        equal = next((it for it in nearest if dataset.encoded(it) == stored), None)
        if equal is not None:
            yield Match(image, equal, "bytes", 0.0)
        else:
            yield Match(image, nearest[0], "hash", float(bits[start]))


def _same_people(
    one: NDArray[np.float32],
    embeddings: PackEmbeddings,
    labels: NDArray[np.int64],
    means: NDArray[np.float32],
    cosine: float,
) -> Iterator[Match]:
    """Of a set's unit embeddings [n, D], each that is as alike to the mean of some class as `cosine`, with the image of the class
    that is most alike.
    """
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(means) + 1))
    step = max(1, _COSINES // len(means))
    for start in range(0, len(one), step):
        cosines = one[start : start + step] @ means.T
        nearest = cosines.argmax(axis=1)
        for row in np.flatnonzero(cosines.max(axis=1) >= cosine).tolist():
            own = order[bounds[nearest[row]] : bounds[nearest[row] + 1]]
            alike = embeddings[own] @ one[start + row]
            yield Match(start + row, int(own[alike.argmax()]), "person", float(cosines[row].max()))


def _embedded(recognizer: Recognizer, one: Comparable, progress: bool) -> NDArray[np.float32]:
    """Unit embeddings [n, D] of a set's images."""
    read = partial(one.pixels, size=recognizer.network.input_size)
    faces = in_order(read, range(len(one)))
    return embedded(recognizer, tracked(faces, f"embedding {one.name}", shown=progress, total=len(one)))


def _scored(
    one: Comparable, embeddings: NDArray[np.float32], same: list[Match], people: list[Match]
) -> dict[str, Scores]:
    """The scores of the whole set, without the images that are in the pack, and without the people; no scores where too little
    of it is left.
    """
    found: dict[str, Scores] = {}
    for name, matches in (
        (one.name, []),
        (f"{one.name} without its images", same),
        (f"{one.name} without its images and people", same + people),
    ):
        left, kept = one.without({it.image for it in matches})
        try:
            found[name] = left.evaluate(torch.from_numpy(embeddings[kept])).scores
        except InputError:
            found[name] = {}
    return found


def _list(path: Path, one: Comparable, dataset: RecordDataset, matches: list[Match]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "found by", "key", "class", "bits or cosine"])
        for it in sorted(matches, key=lambda it: (it.image, it.kind)):
            measure = f"{it.measure:.4f}" if it.kind == "person" else f"{it.measure:.0f}"
            row = [one.place(it.image), it.kind, dataset.key(it.sample), dataset.label(it.sample), measure]
            writer.writerow(row)


def _draw(path: Path, one: Comparable, dataset: RecordDataset, kinds: list[list[Match]]) -> None:
    """Of each kind the most doubtful, in rows of a set's images above those of the pack. No file where there are none."""
    white = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    faces: list[Pixels] = []
    for matches in kinds:
        doubtful = sorted(matches, key=lambda it: it.measure if it.kind == "person" else -it.measure)[:_SHOWN]
        for start in range(0, len(doubtful), _COLUMNS):
            row = doubtful[start : start + _COLUMNS]
            blank = [white] * (_COLUMNS - len(row))
            faces += [one.pixels(it.image, _SIDE) for it in row] + blank
            faces += [images.resized(dataset[it.sample][0], _SIDE) for it in row] + blank
    path.unlink(missing_ok=True)
    if faces:
        images.write(path, images.sheet(faces, _COLUMNS, len(faces) // _COLUMNS))
