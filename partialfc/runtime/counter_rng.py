"""Counter-based random numbers: (seed, purpose, step, index) -> numbers. There is no state to save or to seed.

The generator is SplitMix64 (Steele, Lea, Flood 2014). Its n-th output is a bijective mix of key + n * gamma.
Any rank can therefore compute any number on its own, in any order. The numbers do not depend on the version
of a library.
"""

import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # pack commands and data-generation workers start without torch
    from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
FACTORS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

Words = NDArray[np.uint64]


def derive_key(seed: int, purpose: str, *counters: int) -> int:
    """Return a 64-bit key for one purpose at one position (step, epoch, block ...) of a run.

    Counters are not negative.
    """
    state = np.uint64(0)
    for word in (seed, zlib.crc32(purpose.encode()), *counters):
        state = _mix(np.array([int(state) + GAMMA & _MASK ^ word & _MASK], np.uint64))[0]
    return int(state)


def random_bits(key: int | Words, index: NDArray[np.integer]) -> Words:
    """Return 64 random bits per index, uint64, in the shape of `index`.

    `key` is one key for all or one per index.
    """
    words = np.multiply(index, np.uint64(GAMMA), dtype=np.uint64, casting="unsafe")
    words += np.asarray(key, np.uint64)
    return _mix(_mix(words))


def random_uniform(key: int, index: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return uniform numbers in [0, 1), float64: multiples of 2^-53."""
    words = random_bits(key, index)
    words >>= np.uint64(11)
    drawn = words.astype(np.float64)
    drawn *= 2.0**-53
    return drawn


def random_integers(key: int, index: NDArray[np.integer], bound: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return uniform integers in [0, bound), int64, for bounds up to 2^32.

    The bias is below bound / 2^53.
    """
    drawn = random_uniform(key, index)
    drawn *= bound
    return drawn.astype(np.int64)


def random_normal(key: int, index: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return standard normal numbers, float64, by the Box-Muller transform."""
    twice = index.astype(np.uint64) * np.uint64(2)
    radius: NDArray[np.float64] = np.sqrt(-2 * np.log1p(-random_uniform(key, twice)))
    return radius * np.cos(2 * np.pi * random_uniform(key, twice + np.uint64(1)))


def permute_indices(key: int, index: NDArray[np.integer], length: int) -> NDArray[np.int64]:
    """Return the images of indices under a keyed permutation of range(length), in constant memory."""
    keys, lengths = np.array([key], np.uint64), np.array([length])
    return permute_indices_per_key(keys, index, lengths, bound=length)


def permute_indices_per_key(
    keys: Words, index: NDArray[np.integer], lengths: NDArray[np.integer], *, bound: int
) -> NDArray[np.int64]:
    """Return the image of each index under a permutation of range(length) with its own key and length.

    `bound` is at least as large as all lengths and affects the result. The permutation is a Feistel network
    over the next even power of two, iterated until the result is in range (Black and Rogaway 2002).
    """
    half = max(1, ((bound - 1).bit_length() + 1) // 2)
    keys, lengths = np.broadcast_to(keys, index.shape), np.broadcast_to(lengths, index.shape)
    image = _feistel(keys, index.astype(np.uint64), half)
    while (outside := image >= lengths).any():
        image[outside] = _feistel(keys[outside], image[outside], half)
    return image.astype(np.int64)


def _feistel(keys: Words, value: Words, half: int) -> Words:
    low = np.uint64((1 << half) - 1)
    left, right = value >> np.uint64(half), value & low
    for turn in range(6):
        left, right = right, left ^ (random_bits(keys ^ np.uint64(turn), right) & low)
    return left << np.uint64(half) | right


def as_int64(word: int) -> int:
    """Return the int64 with the bits of a 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


def mix_words(words_: "Tensor") -> "Tensor":
    """Return what `random_bits` computes from key + index * GAMMA, as int64 of the same bits.

    Runs on any device; `words_` is overwritten.
    """
    for _ in range(2):
        for shift, factor in ((30, FACTORS[0]), (27, FACTORS[1]), (31, 1)):
            words_.bitwise_xor_((words_ >> shift) & ((1 << 64 - shift) - 1)).mul_(as_int64(factor))
    return words_


def _mix(words_: Words) -> Words:
    """Mix in place: memory bandwidth limits it."""
    shifted = np.empty_like(words_)
    for shift, factor in ((30, FACTORS[0]), (27, FACTORS[1])):
        words_ ^= np.right_shift(words_, np.uint64(shift), out=shifted)
        words_ *= np.uint64(factor)
    words_ ^= np.right_shift(words_, np.uint64(31), out=shifted)
    return words_
