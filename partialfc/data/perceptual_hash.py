"""Perceptual hashes that find re-encoded, resized or mirrored copies of an image, and their search.

The hash is pHash (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010) with 16 x
16 frequencies. With the usual 8 x 8, aligned faces are hard to distinguish.
"""

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from partialfc.data.images import ImageArray
from partialfc.runtime.progress import map_in_threads, progress_bar

Hashes = NDArray[np.uint64]  # `[n, 4]`
IndexArray = NDArray[np.int64]

MAX_DISTANCE = 32  # maximum Hamming distance between hashes of the same image, of 255 bits

_SIDE, _FREQUENCIES = 32, 16
_BITS = _FREQUENCIES**2 - 1
_MIN_DETAIL = 0.01  # gray values; smaller variation is numerical noise
_KEY_BITS = 21  # bits that are equal for candidate pairs
_NUM_PERMUTATIONS = 2  # of the bits, each cut into keys
_PAIRS_PER_BLOCK = 1 << 22  # pairs compared at a time


def image_hash(pixels: ImageArray) -> NDArray[np.uint64]:
    """Return a hash of 255 bits, uint64 `[4]`; None for an image of one color.

    The bits tell which of the lowest frequencies of the gray image, except the mean, are above their median.
    """
    gray = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    waves = cv2.dct(gray.astype(np.float32))[:_FREQUENCIES, :_FREQUENCIES].reshape(-1)[1:]
    above = waves > np.median(waves)
    if np.abs(waves).max() < _MIN_DETAIL:
        above[:] = False
    return np.packbits(np.append(False, above)).view(np.uint64)


def hash_images(
    pixels: Callable[[int], ImageArray],
    count: int,
    description: str,
    *,
    mirrored: bool = False,
    progress: bool = False,
) -> Hashes:
    """Return the hashes `[count, 4]` of images 0 to count - 1.

    With `mirrored`, the hashes of their mirror images follow: `[2 count, 4]`. `description` labels the
    progress bar.
    """

    def of(image: int) -> list[NDArray[np.uint64]]:
        found = pixels(image)
        return [
            image_hash(it) for it in ([found, np.ascontiguousarray(found[:, ::-1])] if mirrored else [found])
        ]

    hashes = np.empty((1 + mirrored, count, 4), np.uint64)
    for place, one in enumerate(
        map_in_threads(of, progress_bar(range(count), description, enabled=progress, total=count))
    ):
        hashes[:, place] = one
    return hashes.reshape(-1, 4)


def hamming_distances(first: Hashes, second: Hashes) -> NDArray[np.int64]:
    """Return the number of different bits between each of `first` and the entry of `second` at the same position."""
    return np.bitwise_count(first ^ second).sum(axis=1, dtype=np.int64)


def find_near_pairs(first: Hashes, second: Hashes) -> tuple[IndexArray, IndexArray]:
    """Return index pairs of hashes in `first` and `second` that differ in at most MAX_DISTANCE bits, ascending.

    Images of one color match nothing. Hashes are compared if they agree in 21 bits, for 24 choices of these
    bits. Pairs that differ in 11 bits are never missed; with 16 bits one in a thousand is missed, with 24 one
    in 30, with 32 one in 4. Memory: 100 bytes per hash, 16 bytes per match, and a quarter of a GiB.
    """
    found = [one * len(second) + other for one, other in _iter_candidates(first, second)]
    together = np.unique(np.concatenate([np.empty(0, np.int64), *found]))
    return together // max(1, len(second)), together % max(1, len(second))


def _iter_candidates(first: Hashes, second: Hashes) -> Iterator[tuple[IndexArray, IndexArray]]:
    """Yield the pairs of `find_near_pairs` in blocks, possibly with duplicates."""
    generator = np.random.default_rng(0)
    detailed = [np.flatnonzero(it.any(axis=1)) for it in (first, second)]
    for _ in range(_NUM_PERMUTATIONS):
        order = generator.permutation(_BITS) + 1
        for bits in np.split(order[: _BITS // _KEY_BITS * _KEY_BITS], _BITS // _KEY_BITS):
            keys, others = (
                _bucket_keys(it, bits)[rows] for it, rows in zip((first, second), detailed, strict=True)
            )
            for one, other in _iter_equal_keys(keys, others):
                places = detailed[0][one], detailed[1][other]
                near = hamming_distances(first[places[0]], second[places[1]]) <= MAX_DISTANCE
                yield places[0][near], places[1][near]


def _bucket_keys(hashes: Hashes, bits: IndexArray) -> NDArray[np.uint32]:
    """Return the selected bits of each hash as a number `[n]`."""
    content = hashes.view(np.uint8).reshape(len(hashes), 32)
    keys = np.zeros(len(hashes), np.uint32)
    for bit in bits.tolist():
        keys = keys << np.uint32(1) | (content[:, bit // 8] >> (7 - bit % 8) & 1)
    return keys


def _iter_equal_keys(
    first: NDArray[np.uint32], second: NDArray[np.uint32]
) -> Iterator[tuple[IndexArray, IndexArray]]:
    """Yield index pairs of equal keys."""
    order = np.argsort(second, kind="stable")
    begin, end = (np.searchsorted(second, first, side, sorter=order) for side in ("left", "right"))
    until = np.cumsum(end - begin)
    start = 0
    while start < len(first):
        done = until[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(until, done + _PAIRS_PER_BLOCK, "right")))
        counts = (end - begin)[start:stop]
        one = np.repeat(np.arange(start, stop), counts)
        within = np.arange(len(one)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield one, order[begin[one] + within]
        start = stop
