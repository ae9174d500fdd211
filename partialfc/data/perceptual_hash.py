"""Hashes by which an image is found again that was encoded anew, resized or mirrored; and the search for them.

The hash is pHash's (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010) at 16 x 16
frequencies: at its usual 8 x 8 aligned faces are much the same.
"""

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from partialfc.data.images import ImageArray
from partialfc.runtime.progress import map_in_threads, progress_bar

Hashes = NDArray[np.uint64]  # [n, 4]
IndexArray = NDArray[np.int64]

MAX_DISTANCE = 32  # bits in which the hashes of one image may differ, of 255

_SIDE, _FREQUENCIES = 32, 16
_BITS = _FREQUENCIES**2 - 1
_MIN_DETAIL = 0.01  # grey values: less is no detail, but the arithmetic's
_KEY_BITS = 21  # bits by which hashes are put beside each other
_NUM_PERMUTATIONS = 2  # of the bits, each cut into keys
_PAIRS_PER_BLOCK = 1 << 22  # pairs that are looked at


def image_hash(pixels: ImageArray) -> NDArray[np.uint64]:
    """255 bits, uint64 [4]: which of the grey image's lowest frequencies, but for the mean, are above their median. None is of an
    image of one colour.
    """
    grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    waves = cv2.dct(grey.astype(np.float32))[:_FREQUENCIES, :_FREQUENCIES].reshape(-1)[1:]
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
    """The hashes [count, 4] of images 0 to count - 1; mirrored: [2 count, 4], and after them those of their mirror images. what:
    is done, for a bar of progress.
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
    """In how many bits each of `first` differs from the one of `second` in its place."""
    return np.bitwise_count(first ^ second).sum(axis=1, dtype=np.int64)


def find_near_pairs(first: Hashes, second: Hashes) -> tuple[IndexArray, IndexArray]:
    """Places in `first` and in `second` of all pairs of hashes that differ in NEAR bits at most, ascending. An image of one
    colour is like no other.

    Hashes are compared that agree in 21 bits, by 24 choices of those. Pairs that differ in 11 bits are never missed; of those
    that differ in 16 one in a thousand is, in 24 one in 30, in 32 one in 4. Memory: 100 bytes a hash and 16 bytes a pair that
    is found, beside a quarter of a GiB.
    """
    found = [one * len(second) + other for one, other in _iter_candidates(first, second)]
    together = np.unique(np.concatenate([np.empty(0, np.int64), *found]))
    return together // max(1, len(second)), together % max(1, len(second))


def _iter_candidates(first: Hashes, second: Hashes) -> Iterator[tuple[IndexArray, IndexArray]]:
    """As `find_near_pairs`, block by block, and a pair more than once."""
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
    """[n]: the chosen bits of each, as a number."""
    content = hashes.view(np.uint8).reshape(len(hashes), 32)
    keys = np.zeros(len(hashes), np.uint32)
    for bit in bits.tolist():
        keys = keys << np.uint32(1) | (content[:, bit // 8] >> (7 - bit % 8) & 1)
    return keys


def _iter_equal_keys(
    first: NDArray[np.uint32], second: NDArray[np.uint32]
) -> Iterator[tuple[IndexArray, IndexArray]]:
    """Places of equal keys."""
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
