"""Flip the labels of a random fraction of a pack's images, to measure the cost of label noise.

    python -m experiments.flip_labels PACK OUT [--share 0.3] [--seed 0]

Images and their order do not change; verification sets of the pack are copied.
"""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partialfc.data import RecordDataset
from partialfc.data.packs.merge_split import require_distinct_folders
from partialfc.data.packs.pack_writer import EncodedSample, write_pack
from partialfc.runtime.exit_codes import exit_on_input_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Gives a share of a pack's images the label of another class."
    )
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not 0 <= arguments.share <= 1:
        parser.error(f"--share {arguments.share}: expected 0 to 1")
    require_distinct_folders(arguments.out, [arguments.pack])
    dataset = RecordDataset(arguments.pack)
    labels = dataset.labels()
    wrong = flip_labels(labels, dataset.num_classes, arguments.share, arguments.seed)

    def samples() -> Iterator[EncodedSample]:
        for image, label in enumerate(wrong.tolist()):
            yield label, dataset.encoded_image(image)

    size = dataset[0][0].shape[0]
    write_pack(arguments.out, samples(), size=size, num_classes=dataset.num_classes)
    for pairs in arguments.pack.glob("*.bin"):
        shutil.copy(pairs, arguments.out)
    print(f"{arguments.out}: {np.count_nonzero(wrong != labels)} of {len(labels)} labels are wrong")


def flip_labels(labels: NDArray[np.int64], num_classes: int, share: float, seed: int) -> NDArray[np.int64]:
    """Return labels `[n]` with a fraction `share` replaced by uniformly random other classes."""
    draws = np.random.default_rng(seed)
    chosen = draws.permutation(len(labels))[: round(share * len(labels))]
    wrong = labels.copy()
    wrong[chosen] = (labels[chosen] + draws.integers(1, num_classes, len(chosen))) % num_classes
    return wrong


if __name__ == "__main__":
    with exit_on_input_error():
        main()
