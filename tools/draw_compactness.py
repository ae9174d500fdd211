"""Draws how compact classes are in the plane, and says it in numbers, from runs whose embeddings have two components.

    tools/draw_compactness.py OUT.png FOLDER...

A FOLDER holds the runs of one loss, a seed each, as `partialfc sweep` writes them; each gets a picture, of its first run, and a
line: how many of its runs put fewer than 98 % of their training images nearest to the right class centre (collapsed: they
are counted, and left out of what follows), and for the others the mean angle between an image and its class's mean, and
the deviation of the angles between neighbouring means, over all runs with a 95 % interval.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from partialfc.data import RecordDataset
from partialfc.errors import InputError
from partialfc.inference.batches import embedded
from partialfc.inference.recognizer import load
from partialfc.inference.weights import newest
from partialfc.runtime.checkpoint import read_rows
from partialfc.runtime.files import SUMMARY

_RIGHT = 0.98  # of the training images, else a run has collapsed


@dataclass(frozen=True)
class Measured:
    """Of one run. Angles in degrees."""

    embeddings: NDArray[np.float32]  # [n, 2] of length 1
    labels: NDArray[np.int64]  # [n]
    right: float  # share of images that are nearest to their own class's centre
    within: float  # mean angle between an image and the mean of its class
    between: float  # deviation of the angles between neighbouring means


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: draw_compactness.py OUT.png FOLDER...")
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folders = [Path(it) for it in sys.argv[2:]]
    figure, axes = plt.subplots(1, len(folders), figsize=(3.6 * len(folders), 3.8), squeeze=False)
    print("| runs | collapsed | right | within | between neighbours |\n|---|---|---|---|---|")
    for axis, folder in zip(axes[0], folders, strict=True):
        found = [measured_run(path.parent) for path in sorted(folder.glob(f"*/{SUMMARY}"))]
        if not found:
            sys.exit(f"{folder}: no run that has finished")
        print(line(folder.name, found))
        draw(axis, folder.name, next((it for it in found if it.right >= _RIGHT), found[0]))
    figure.tight_layout()
    figure.savefig(sys.argv[1], dpi=110)


def measured_run(run: Path) -> Measured:
    """Of the images of the run's pack, as its network sees them."""
    recognizer = load(run)
    provenance = recognizer.provenance
    assert provenance is not None
    dataset = RecordDataset(Path(provenance.config.data.path), recognizer.network.input_size)
    labels = dataset.labels()
    embeddings = embedded(recognizer, (dataset[image][0] for image in range(len(dataset))))
    rows = read_rows(newest(run), "head.centers", 0, provenance.num_classes).float()
    return measured(embeddings, labels, normalize(rows).numpy())


def measured(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], centers: NDArray[np.float32]
) -> Measured:
    """Of embeddings [n, 2] and class centres [C, 2], all of length 1."""
    if embeddings.shape[1] != 2:
        raise InputError(f"embeddings of {embeddings.shape[1]} components; wanted backbone.embedding: 2")
    right = (embeddings @ centers.T).argmax(axis=1) == labels
    classes = np.unique(labels)
    means = np.stack([embeddings[labels == label].mean(axis=0) for label in classes])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    own = means[np.searchsorted(classes, labels)]
    angles = np.degrees(np.arccos(np.clip((embeddings * own).sum(axis=1), -1, 1)))
    within = float(np.mean([angles[labels == label].mean() for label in classes]))
    places = np.sort(np.degrees(np.arctan2(means[:, 1], means[:, 0])))
    gaps = np.diff(places, append=places[0] + 360)
    return Measured(embeddings, labels, float(right.mean()), within, float(gaps.std()))


def line(name: str, found: list[Measured]) -> str:
    """Of a loss's runs."""
    good = [it for it in found if it.right >= _RIGHT]
    numbers = (
        [interval([it.within for it in good]), interval([it.between for it in good])] if good else ["", ""]
    )
    right = f"{np.mean([it.right for it in found]):.1%}"
    return f"| {name}, {len(found)} | {len(found) - len(good)} | {right} | {' | '.join(numbers)} |"


def interval(values: list[float]) -> str:
    """Mean and 95 % interval of the mean, by 10,000 bootstrap samples of the runs."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{np.mean(values):.1f} [{low:.1f}, {high:.1f}]"


def draw(axis: mpl.axes.Axes, name: str, run: Measured) -> None:
    """The run's images on the circle, a colour for each class."""
    colors = mpl.colormaps["tab10"](run.labels % 10)
    across, up = run.embeddings.T
    axis.scatter(across, up, s=6, c=colors, alpha=0.5)
    axis.set(title=f"{name}: within {run.within:.1f}, between {run.between:.1f}", aspect="equal")
    axis.title.set_fontsize(8)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
