"""Small pictures to pack, and packs of them."""

from pathlib import Path

import cv2
import numpy as np

from partialfc.data import images
from partialfc.data.packs import pack_writer
from partialfc.data.packs import pairs as pair_sets


def face(identity: int, image: int, size: int = 32) -> bytes:
    """A blurred pattern of the identity with noise of the image, as JPEG."""
    pattern = np.random.default_rng(identity).normal(size=(4, 4, 3))
    noise = np.random.default_rng([identity, image]).normal(size=(size, size, 3))
    grown = cv2.resize(pattern, (size, size), interpolation=cv2.INTER_CUBIC)
    return images.encode_jpeg(np.clip(127 + 50 * grown + 20 * noise, 0, 255).astype(np.uint8), 95)


def write_pack(folder: Path, classes: int, images_each: int, size: int = 32, first: int = 0) -> None:
    """first: the identity that has label 0."""
    samples = (
        (label, face(first + label, image, size)) for label in range(classes) for image in range(images_each)
    )
    pack_writer.write_pack(folder, samples, num_classes=classes, size=size)


def write_pairs(path: Path, pairs: int = 20, size: int = 32) -> None:
    """Pairs of identities from 100 on; every other one is of the same person."""
    same = [pair % 2 == 0 for pair in range(pairs)]
    shown = [
        face(100 + pair + (side and not match), side, size)
        for pair, match in enumerate(same)
        for side in (0, 1)
    ]
    pair_sets.write_pairs(path, shown, same)
