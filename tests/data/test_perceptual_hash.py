"""An image is found again that was encoded anew, resized or mirrored; what the search finds is what all pairs say."""

import cv2
import numpy as np
import pytest
from helpers.faces import face

from partialfc.data import images
from partialfc.data.perceptual_hash import (
    MAX_DISTANCE,
    find_near_pairs,
    hamming_distances,
    hash_images,
    image_hash,
)

FACE = images.decode(face(7, 0, 112))


@pytest.mark.parametrize(
    "change",
    [
        lambda it: images.decode(images.encode_jpeg(it, 75)),
        lambda it: images.resize(it, 64),
        lambda it: images.resize(it, 160),
        lambda it: np.clip(it * 0.9 + 5, 0, 255).astype(np.uint8),
        lambda it: np.repeat(cv2.cvtColor(it, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2),
    ],
    ids=["encoded", "smaller", "larger", "darker", "gray"],
)
def test_a_changed_image_has_nearly_the_same_hash(change):
    assert hamming_distances(image_hash(change(FACE))[None], image_hash(FACE)[None])[0] <= 12
    assert (
        hamming_distances(image_hash(images.decode(face(8, 0, 112)))[None], image_hash(FACE)[None])[0]
        > 2 * MAX_DISTANCE
    )


def test_a_mirror_image_is_found_by_its_own_hash():
    hashes = hash_images(lambda image: [FACE, FACE[:, ::-1]][image], 2, "", mirrored=True)
    assert hashes[:2].tolist() == hashes[:1:-1].tolist() and hashes[0].tolist() != hashes[1].tolist()
    assert hash_images(lambda image: FACE, 1, "").tolist() == hashes[:1].tolist()
    assert hamming_distances(hashes[:1], image_hash(FACE)[None]).tolist() == [0]


@pytest.mark.parametrize("value", [0, 127, 255])
def test_an_image_of_one_colour_is_like_no_other(value):
    flat = image_hash(np.full((112, 112, 3), value, np.uint8))[None]
    assert not flat.any()
    assert not len(find_near_pairs(flat, flat)[0])


def test_the_search_finds_what_all_pairs_say(monkeypatch):
    generator = np.random.default_rng(0)
    first = generator.integers(0, 1 << 63, (400, 4), np.uint64)
    second = np.concatenate(
        [first[100:300], first[100:300], generator.integers(0, 1 << 63, (50, 4), np.uint64)]
    )
    for row in second:  # bits 0 to 47 of the second block of 64
        row[1] ^= np.uint64((1 << int(generator.integers(13))) - 1)  # up to 12 bits differ
    monkeypatch.setattr("partialfc.data.perceptual_hash._PAIRS_PER_BLOCK", 100)
    expected = [
        (one, other)
        for one in range(len(first))
        for other in np.flatnonzero(hamming_distances(first[one][None], second) <= MAX_DISTANCE).tolist()
    ]
    assert len(expected) == 400
    assert list(zip(*(it.tolist() for it in find_near_pairs(first, second)), strict=True)) == expected


def test_more_bits_than_near_are_another_image():
    first = np.random.default_rng(0).integers(0, 1 << 63, (1, 4), np.uint64)
    for bits, found in ((MAX_DISTANCE // 2, 1), (MAX_DISTANCE + 1, 0)):
        other = first ^ np.array([[0, 0, (1 << bits) - 1, 0]], np.uint64)
        assert len(find_near_pairs(first, other)[0]) == found


def test_of_nothing_nothing_is_found():
    nothing = np.empty((0, 4), np.uint64)
    assert [len(it) for it in find_near_pairs(nothing, nothing)] == [0, 0]
