"""Summary of a pack: counts, sizes, and an image grid."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partialfc.data import images
from partialfc.data.dataset import RecordDataset
from partialfc.runtime import counter_rng
from partialfc.runtime.progress import progress_bar

_SHOWN = 256  # images whose sizes are read
_BINS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1 << 62)


@dataclass(frozen=True)
class PackSummary:
    """Summary of a pack."""

    dialect: str  # tool that writes such packs, and its distinguishing features
    num_images: int
    num_classes: int  # according to the pack
    num_bytes: int  # size of the .rec
    sizes: dict[str, int]  # `height x width`: number of images, among those read
    images_per_class: NDArray[np.int64]  # `[num_classes]`

    def format_lines(self) -> list[str]:
        """Return the summary as human-readable lines."""
        counts = self.images_per_class[self.images_per_class > 0]
        sizes = ", ".join(f"{size} ({number})" for size, number in sorted(self.sizes.items()))
        lines = [
            f"{self.dialect}",
            f"{self.num_images:,} images of {len(counts):,} identities in {self.num_bytes / 1e9:.3g} GB; "
            f"{self.num_classes:,} classes, {self.num_classes - len(counts):,} of them without images",
            f"sizes of {sum(self.sizes.values())} images: {sizes}",
            f"images per identity: {counts.min()} to {counts.max()}, median {np.median(counts):g}",
        ]
        for low, high in itertools.pairwise(_BINS):
            number = int(((counts >= low) & (counts < high)).sum())
            if number:
                name = (
                    f"{low}" if high == low + 1 else f"{low} on" if high > 1 << 60 else f"{low} to {high - 1}"
                )
                bar = "#" * round(40 * number / len(counts))
                lines.append(f"  {name:>12}  {number:>10,} identities  {bar}")
        return lines


def summarize_pack(folder: Path, *, progress: bool = False) -> PackSummary:
    """Read the header of every image and decode some images.

    Returns:
        Summary of the pack.

    Raises:
        InputError: If the pack cannot be read.
    """
    dataset = RecordDataset(folder)
    per_class = np.zeros(dataset.num_classes, np.int64)
    for sample in progress_bar(range(len(dataset)), "reading", enabled=progress):
        per_class[dataset.label(sample)] += 1
    sizes: dict[str, int] = {}
    for sample in _fixed_sample(len(dataset), _SHOWN):
        height, width, _ = dataset[sample][0].shape
        sizes[f"{height} x {width}"] = sizes.get(f"{height} x {width}", 0) + 1
    return PackSummary(
        dataset.dialect, len(dataset), dataset.num_classes, dataset.path.stat().st_size, sizes, per_class
    )


def write_image_grid(folder: Path, path: Path, *, columns: int = 16, rows: int = 10, size: int = 112) -> None:
    """Write a grid of images from all parts of the pack, the same every time; PNG or JPEG by suffix."""
    dataset = RecordDataset(folder, image_size=size)
    faces = (dataset[sample][0] for sample in _fixed_sample(len(dataset), rows * columns))
    images.write(path, images.image_grid(faces, columns, rows))


def _fixed_sample(length: int, count: int) -> list[int]:
    """Return `count` of range(length), or all: a fixed selection."""
    chosen = counter_rng.permute_indices(
        counter_rng.derive_key(0, "shown"), np.arange(min(count, length)), length
    )
    return sorted(chosen.tolist())
