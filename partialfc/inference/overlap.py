"""Overlap of evaluation sets with a training pack: images, by perceptual hashes, and people, by a model.

Sets are also scored without the overlap.

Shapes:
    n: images of a set
    N: images of the pack
    C: classes
    D: embedding size
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

EMBEDDINGS_FOLDER = "embeddings"  # for the embeddings of the pack

_SIDE = 112  # image size for hashing and grids
_COLUMNS, _SHOWN = 16, 64  # in a grid: pairs per row, pairs of each kind
_COSINES = 1 << 24  # cosines per block

MatchType = Literal["bytes", "hash", "person"]


class Comparable(EvaluationSet, Protocol):
    """Evaluation set that can exclude some of its images."""

    def encoded_image(self, index: int) -> EncodedImage:
        """Return the encoded image `index`."""

    def image_location(self, index: int) -> str:
        """Return a human-readable location of image `index`."""

    def exclude(self, excluded: Collection[int]) -> tuple[Self, list[int]]:
        """Return the set without these images and their dependents, and the indices of its images."""


@dataclass(frozen=True)
class Match:
    """Image of a set and an image of the pack: the same image, or the same person."""

    image: int
    sample: int
    match_type: MatchType
    distance_or_cosine: (
        float  # Hamming distance of the hashes; for a person the cosine of the image and the class mean
    )


@dataclass(frozen=True)
class Overlap:
    """Overlap of a set with the pack."""

    matches: list[Match]  # at most one per image as an image, and one as a person
    scores: dict[str, Scores]  # of the full set and without the overlap; empty without a matcher

    def count(self, *kinds: MatchType) -> int:
        """Return the number of images of the set with a match of these types."""
        return len({it.image for it in self.matches if it.match_type in kinds})


@dataclass(frozen=True)
class PersonMatcher:
    """Model that matches people, and its source."""

    recognizer: Recognizer
    source: Path
    min_cosine: float  # minimum cosine of an image and the mean of its class


def find_overlaps(
    pack: Path,
    sets: Sequence[Comparable],
    out: Path,
    matcher: PersonMatcher | None = None,
    *,
    progress: bool = False,
) -> dict[str, Overlap]:
    """Return the overlap of each set with a pack, by set name; people only with a matcher.

    Writes all matches of each set to NAME.csv and the most doubtful ones to NAME.png, the set's image above
    the pack's. The embeddings of the pack are stored for later calls, and an interrupted embedding is
    resumed. Memory: 100 bytes per image; with a matcher the mean of each class, float32 `[C, D]`, twice.

    Args:
        pack: Training pack.
        sets: Evaluation sets.
        out: Folder to write to.
        matcher: Model that matches people; None: images only.
        progress: Whether to show a progress bar.

    Returns:
        Overlap by set name.

    Raises:
        InputError: If an image cannot be read.
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


# Image of the set, image of the pack, distance.
HashMatches = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _iter_hash_matches(
    sets: Sequence[Comparable], dataset: RecordDataset, progress: bool
) -> Iterator[tuple[Comparable, HashMatches]]:
    """Yield each set with its near images of the pack, nearest first."""
    both = hash_pack(dataset, mirrored=True, progress=progress)
    for one in sets:
        read = partial(one.pixels, size=_SIDE)
        ours = hash_images(read, len(one), f"reading {one.name}", progress=progress)
        image, place = find_near_pairs(ours, both)
        bits = hamming_distances(ours[image], both[place])
        order = np.lexsort((place, bits, image))
        yield one, (image[order], place[order] % len(dataset), bits[order])


def _match_images(eval_set: Comparable, dataset: RecordDataset, near: HashMatches) -> Iterator[Match]:
    """Return the nearest match of each image; of equally near ones, a byte-identical one."""
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
    """Yield the images of a set, embeddings `[n, D]`, whose cosine with some class mean reaches `min_cosine`.

    The match is the most similar image of that class.
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
    """Return L2-normalized embeddings `[n, D]` of a set's images."""
    read = partial(eval_set.pixels, size=recognizer.network.input_size)
    faces = map_in_threads(read, range(len(eval_set)))
    return embed_iterable(
        recognizer, progress_bar(faces, f"embedding {eval_set.name}", enabled=progress, total=len(eval_set))
    )


def _score_without_matches(
    eval_set: Comparable, embeddings: NDArray[np.float32], same: list[Match], people: list[Match]
) -> dict[str, Scores]:
    """Return the scores of the full set, without images in the pack, and without people in the pack.

    Empty if too little is left to score.
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
    """Draw the most doubtful matches of each kind, the set's images above the pack's. No file without matches."""
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
