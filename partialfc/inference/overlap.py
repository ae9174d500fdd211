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
from partialfc.data.images import EncodedImage, ImageArray
from partialfc.data.packs.merge_split import require_distinct_folders
from partialfc.data.packs.shared_images import hash_pack
from partialfc.data.perceptual_hash import find_near_pairs, hamming_distances, hash_images
from partialfc.data.stored_embeddings import StoredEmbeddings
from partialfc.errors import InputError
from partialfc.evaluation.sets import EvaluationSet, Scores
from partialfc.inference.batching import embed_iterable
from partialfc.inference.class_means import compute_class_means
from partialfc.inference.embed_pack import embed_pack
from partialfc.inference.recognizer import Recognizer
from partialfc.runtime.files import atomic_write
from partialfc.runtime.progress import map_in_threads, progress_bar

EMBEDDINGS_FOLDER = "embeddings"  # folder for the pack's

_SIDE = 112  # pixels at which images are hashed and shown
_COLUMNS, _SHOWN = 16, 64  # of a sheet: pairs in a row, and of a kind
_COSINES = 1 << 24  # at a time

MatchType = Literal["bytes", "hash", "person"]


class Comparable(EvaluationSet, Protocol):
    """An evaluation set that remains one without some of its images."""

    def encoded_image(self, index: int) -> EncodedImage:
        """Image `index` as it is stored."""

    def image_location(self, index: int) -> str:
        """Where image `index` is, for people."""

    def exclude(self, excluded: Collection[int]) -> tuple[Self, list[int]]:
        """The set without these images, and without what cannot be compared once they are gone; and which of its images it has."""


@dataclass(frozen=True)
class Match:
    """An image of a set, and one of the pack that is the same, or shows the same person."""

    image: int
    sample: int
    match_type: MatchType
    distance_or_cosine: float  # bits in which the hashes differ; of a person the cosine of the image and the mean of the class


@dataclass(frozen=True)
class Overlap:
    """What a set and the pack have in common."""

    matches: list[Match]  # at most one of each image as an image, and one as a person
    scores: dict[str, Scores]  # whole, and without what it shares; empty without a judge

    def count(self, *kinds: MatchType) -> int:
        """Of how many images of the set something is in the pack."""
        return len({it.image for it in self.matches if it.match_type in kinds})


@dataclass(frozen=True)
class PersonMatcher:
    """A network that tells people, and where it is from."""

    recognizer: Recognizer
    source: Path
    min_cosine: float  # of an image and the mean of a class, from which they are one person


def find_overlaps(
    pack: Path,
    sets: Sequence[Comparable],
    out: Path,
    matcher: PersonMatcher | None = None,
    *,
    progress: bool = False,
) -> dict[str, Overlap]:
    """What each set has in common with a pack, by its name; people only with a judge. Writes to the folder `out`, of each set, all
    matches to NAME.csv, and to NAME.png the most doubtful ones, the set's image above the pack's; and the pack's embeddings,
    for a later call. A call that was interrupted while it embedded is gone on with. Memory: 100 bytes an image; with a judge
    the mean of each class, float32 [C, D], twice. InputError where an image cannot be read.
    """
    require_distinct_folders(out, [pack])
    out.mkdir(parents=True, exist_ok=True)  # before hours of work
    dataset = RecordDataset(pack)
    same = {
        it.name: list(_match_images(it, dataset, found))
        for it, found in _iter_hash_matches(sets, dataset, progress)
    }
    people: dict[str, list[Match]] = {it.name: [] for it in sets}
    scores: dict[str, dict[str, Scores]] = {it.name: {} for it in sets}
    if matcher:
        embed_pack(matcher.recognizer, matcher.source, pack, out / EMBEDDINGS_FOLDER, progress=progress)
        of_pack = StoredEmbeddings(out / EMBEDDINGS_FOLDER)
        labels = dataset.labels(progress=progress)
        means = compute_class_means(of_pack, labels, dataset.num_classes)
        for one in sets:
            embeddings = _embed_set(matcher.recognizer, one, progress)
            people[one.name] = list(_match_people(embeddings, of_pack, labels, means, matcher.min_cosine))
            scores[one.name] = _score_without_matches(one, embeddings, same[one.name], people[one.name])
    for one in sets:
        _write_listing(out / f"{one.name}.csv", one, dataset, same[one.name] + people[one.name])
        _write_grid(out / f"{one.name}.png", one, dataset, [same[one.name], people[one.name]])
    return {it.name: Overlap(same[it.name] + people[it.name], scores[it.name]) for it in sets}


HashMatches = tuple[
    NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]
]  # images of a set, of the pack, bits


def _iter_hash_matches(
    sets: Sequence[Comparable], dataset: RecordDataset, progress: bool
) -> Iterator[tuple[Comparable, HashMatches]]:
    """Each set, and which of its images are near which of the pack; the nearest of an image first."""
    both = hash_pack(dataset, mirrored=True, progress=progress)
    for one in sets:
        read = partial(one.pixels, size=_SIDE)
        ours = hash_images(read, len(one), f"reading {one.name}", progress=progress)
        image, place = find_near_pairs(ours, both)
        bits = hamming_distances(ours[image], both[place])
        order = np.lexsort((place, bits, image))
        yield one, (image[order], place[order] % len(dataset), bits[order])


def _match_images(eval_set: Comparable, dataset: RecordDataset, near: HashMatches) -> Iterator[Match]:
    """The nearest of each image; of those that are equally near, one of the same bytes."""
    images_of, samples, bits = near
    for image, start in zip(*(it.tolist() for it in np.unique(images_of, return_index=True)), strict=True):
        end = np.searchsorted(images_of, image, "right")
        stored = bytes(eval_set.encoded_image(image))
        nearest = samples[start:end][bits[start:end] == bits[start]].tolist()
        equal = next((it for it in nearest if dataset.encoded_image(it) == stored), None)
        if equal is not None:
            yield Match(image, equal, "bytes", 0.0)
        else:
            yield Match(image, nearest[0], "hash", float(bits[start]))


def _match_people(
    set_embeddings: NDArray[np.float32],
    embeddings: StoredEmbeddings,
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
    for start in range(0, len(set_embeddings), step):
        cosines = set_embeddings[start : start + step] @ means.T
        nearest = cosines.argmax(axis=1)
        for row in np.flatnonzero(cosines.max(axis=1) >= cosine).tolist():
            own = order[bounds[nearest[row]] : bounds[nearest[row] + 1]]
            alike = embeddings[own] @ set_embeddings[start + row]
            yield Match(start + row, int(own[alike.argmax()]), "person", float(cosines[row].max()))


def _embed_set(recognizer: Recognizer, eval_set: Comparable, progress: bool) -> NDArray[np.float32]:
    """Unit embeddings [n, D] of a set's images."""
    read = partial(eval_set.pixels, size=recognizer.network.input_size)
    faces = map_in_threads(read, range(len(eval_set)))
    return embed_iterable(
        recognizer, progress_bar(faces, f"embedding {eval_set.name}", enabled=progress, total=len(eval_set))
    )


def _score_without_matches(
    eval_set: Comparable, embeddings: NDArray[np.float32], same: list[Match], people: list[Match]
) -> dict[str, Scores]:
    """The scores of the whole set, without the images that are in the pack, and without the people; no scores where too little
    of it is left.
    """
    found: dict[str, Scores] = {}
    for name, matches in (
        (eval_set.name, []),
        (f"{eval_set.name} without its images", same),
        (f"{eval_set.name} without its images and people", same + people),
    ):
        left, kept = eval_set.exclude({it.image for it in matches})
        try:
            found[name] = left.evaluate(torch.from_numpy(embeddings[kept])).scores
        except InputError:
            found[name] = {}
    return found


def _write_listing(path: Path, eval_set: Comparable, dataset: RecordDataset, matches: list[Match]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "found by", "key", "class", "bits or cosine"])
        for it in sorted(matches, key=lambda it: (it.image, it.match_type)):
            measure = (
                f"{it.distance_or_cosine:.4f}"
                if it.match_type == "person"
                else f"{it.distance_or_cosine:.0f}"
            )
            row = [
                eval_set.image_location(it.image),
                it.match_type,
                dataset.key(it.sample),
                dataset.label(it.sample),
                measure,
            ]
            writer.writerow(row)


def _write_grid(path: Path, eval_set: Comparable, dataset: RecordDataset, kinds: list[list[Match]]) -> None:
    """Of each kind the most doubtful, in rows of a set's images above those of the pack. No file where there are none."""
    white = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    faces: list[ImageArray] = []
    for matches in kinds:
        doubtful = sorted(
            matches,
            key=lambda it: it.distance_or_cosine if it.match_type == "person" else -it.distance_or_cosine,
        )[:_SHOWN]
        for start in range(0, len(doubtful), _COLUMNS):
            row = doubtful[start : start + _COLUMNS]
            blank = [white] * (_COLUMNS - len(row))
            faces += [eval_set.pixels(it.image, _SIDE) for it in row] + blank
            faces += [images.resize(dataset[it.sample][0], _SIDE) for it in row] + blank
    path.unlink(missing_ok=True)
    if faces:
        images.write(path, images.image_grid(faces, _COLUMNS, len(faces) // _COLUMNS))
