"""Degrade a verification set: the same pairs, the second image of each downscaled or gray.

    python -m experiments.degrade_pairs SET.bin OUT

Writes OUT/SET_small.bin (downscaled to 16 pixels) and OUT/SET_gray.bin, sets of other difficulty for
selecting settings if only one set exists.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from partialfc.data import images
from partialfc.data.images import ImageArray
from partialfc.data.packs.pairs import write_pairs
from partialfc.evaluation.pairs import load_pairs
from partialfc.runtime.exit_codes import exit_on_input_error

_SIZE = 112
_QUALITY = 95


def downscale(pixels: ImageArray) -> ImageArray:
    return images.resize(images.resize(pixels, 16), _SIZE)


def to_gray(pixels: ImageArray) -> ImageArray:
    return np.asarray(cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)


KINDS = {"small": downscale, "gray": to_gray}


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a verification set harder.")
    parser.add_argument("set", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    pairs = load_pairs(arguments.set)
    for kind, degrade in KINDS.items():
        path = arguments.out / f"{pairs.name}_{kind}.bin"
        encoded = [
            images.encode_jpeg(degrade(pairs.pixels(index, _SIZE)), _QUALITY)
            if index % 2
            else bytes(pairs.images[index])
            for index in range(len(pairs))
        ]
        write_pairs(path, encoded, pairs.is_same.tolist())
        print(f"{path}: {len(pairs.is_same)} pairs")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
