"""Benchmark of `partialfc overlap`: recall of planted images of a verification set, and duration.

    python -m benchmarks.overlap PACK SET [--images 50]

PACK is copied to a temporary folder with images of SET, a .bin of other people. They are re-encoded,
downscaled or mirrored in turn, then all three.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from partialfc.data import RecordDataset, images
from partialfc.data.images import ImageArray
from partialfc.data.packs.pack_writer import EncodedSample, write_pack
from partialfc.errors import InputError
from partialfc.evaluation.pairs import VerificationPairs, load_pairs
from partialfc.inference.overlap import find_overlaps

_QUALITIES, _SIZES = (50, 70, 90), (64, 80, 96)


def main() -> None:
    parser = argparse.ArgumentParser(description="Planted images of a set: how many are found.")
    parser.add_argument("pack", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("--images", type=int, default=50)
    arguments = parser.parse_args()
    try:
        pairs, dataset = load_pairs(arguments.set), RecordDataset(arguments.pack)
    except (InputError, OSError) as error:
        parser.error(str(error))
    stored = [bytes(pairs.encoded_image(it)) for it in range(len(pairs))]
    distinct = sorted({content: place for place, content in enumerate(stored)}.values())
    chosen = np.random.default_rng(0).choice(distinct, arguments.images, replace=False).tolist()
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder) / "pack"
        size = len(dataset[0][0])
        write_pack(
            planted, _iter_samples(dataset, pairs, chosen), num_classes=dataset.num_classes + 1, size=size
        )
        start = time.perf_counter()
        found = find_overlaps(planted, [pairs], Path(folder) / "out")[pairs.name]
        seconds = time.perf_counter() - start
    expected = {stored[it] for it in chosen}
    hits = [stored[it.image] for it in found.matches if stored[it.image] in expected]
    wrong = len(found.matches) - len(hits)
    print(f"{len(set(hits))} of {len(expected)} planted images found, {wrong} others of the set")
    print(f"{len(dataset)} images of the pack and {len(pairs)} of the set in {seconds:.0f} s")


def _iter_samples(
    dataset: RecordDataset, pairs: VerificationPairs, chosen: list[int]
) -> Iterator[EncodedSample]:
    """Yield the images of the pack, and the planted ones as a separate class."""
    for place in range(len(dataset)):
        yield dataset.label(place), dataset.encoded_image(place)
    for turn, image in enumerate(chosen):
        yield dataset.num_classes, _perturb(pairs.pixels(image, len(dataset[0][0])), turn)


def _perturb(face: ImageArray, turn: int) -> bytes:
    """Re-encode an image; in turn, downscale or mirror it first."""
    side = len(face)
    if turn % 4 in (1, 3):
        face = images.resize(images.resize(face, _SIZES[turn // 4 % 3] * side // 112), side)
    if turn % 4 in (2, 3):
        face = np.ascontiguousarray(face[:, ::-1])
    return images.encode_jpeg(face, _QUALITIES[turn // 4 % 3])


if __name__ == "__main__":
    main()
