"""Experiment: compactness of classes by three losses, for eight people with embeddings on a circle, over
seeds.

    python -m experiments.compactness FACES OUT [--seeds 0 1 2 ...] [--share I/N] [--json FILE] [--picture
    FILE]

The toy experiment of ElasticFace (arXiv:2109.09416): a small network and unit embeddings with two components.
FACES is a folder of identities. The eight with most images are used, with equal numbers of images, so that
sizes do not affect the angles. Margin and scale are warmed up, and the optimizer is AdamW. Otherwise centers
may collapse onto each other. A run with fewer than 98 % of its images nearest to the correct center has
collapsed. It is counted, and excluded from the angles. OUT contains the pack and the runs; finished runs are
not repeated. --share: every N-th run from run I (from 0), so that N processes can share the work. --picture
plots the first seed without a collapsed run.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch.nn.functional import normalize

from experiments.comparison import format_interval, run_folder, train_once
from partialfc.data import RecordDataset
from partialfc.data.packs.pack_sources import pack_images as pack_faces
from partialfc.data.packs.sources import source_from_folders
from partialfc.errors import InputError
from partialfc.inference.batching import embed_iterable
from partialfc.inference.recognizer import load
from partialfc.inference.stored_centers import read_centers
from partialfc.inference.weights import resolve_checkpoint
from partialfc.runtime.exit_codes import exit_on_input_error
from partialfc.runtime.files import SUMMARY_FILE
from partialfc.sweep.runner import parse_task

_PEOPLE = 8
_LISTING = "people.lst"  # next to the pack: its people
_MIN_ACCURACY = 0.98  # of the training images; below, a run has collapsed
_STAGES = "scale: {0: 8, 20 epochs: [8, 64], 80 epochs: 64}, margin: {0: 0.0, 20 epochs: [0.0, 0.5], 80 epochs: 0.5}"
CASES = {
    "ArcFace": f"loss={{name: arcface, {_STAGES}}}",
    "ElasticFace-Arc": f"loss={{name: elastic_arcface, {_STAGES}, sigma: 0.05}}",
    "ElasticFace-Arc+": f"loss={{name: elastic_arcface, {_STAGES}, sigma: 0.0175, order: paper}}",
}
_SETTINGS = [
    "backbone={name: iresnet_tiny, width: 16, input_size: 32, embedding_size: 2}",
    "optim={name: adamw, lr: 0.002}",
    "train.length=120 epochs",
]


@dataclass(frozen=True)
class RunMeasurement:
    """Result of one run; angles in degrees."""

    embeddings: NDArray[np.float32]  # `[n, 2]`, L2-normalized
    labels: NDArray[np.int64]  # `[n]`
    accuracy: float  # fraction of images that are nearest to their own class center
    mean_class_angle: float  # mean angle between an image and the mean of its class
    neighbor_angle_std: float  # standard deviation of the angles between neighboring means

    @property
    def collapsed(self) -> bool:
        return self.accuracy < _MIN_ACCURACY


Runs = dict[str, dict[int, RunMeasurement]]  # by case and seed


def main() -> None:
    parser = argparse.ArgumentParser(description="How compact classes become by three losses.")
    parser.add_argument("faces", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--share")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    share = parse_task(arguments.share)
    pack = ensure_pack(arguments.faces, arguments.out)
    for seed, case in list(product(arguments.seeds, CASES))[share.index :: share.count]:
        train_once(run_folder(arguments.out, case, seed), case_overrides(pack, case), seed, "faces_tiny")
    runs = {case: measure_finished_runs(arguments.out, case, arguments.seeds) for case in CASES}
    print("\n".join(format_table(runs)))
    if arguments.json:
        arguments.json.write_text(json.dumps(to_rows(runs), indent=1) + "\n")
    if arguments.picture:
        plot(runs, arguments.picture)


def ensure_pack(faces: Path, out: Path) -> Path:
    """Create the pack of the eight people unless it exists."""
    folder, listing = out / "pack", build_listing(faces)
    if not folder.exists():
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out) as temporary:  # separate for each process
            made = Path(temporary) / "pack"
            made.mkdir()
            (made / _LISTING).write_text(listing)
            pack_faces([made / _LISTING], made)
            with suppress(OSError):  # another process created it first
                made.rename(folder)
    if not (folder / _LISTING).exists() or (folder / _LISTING).read_text() != listing:
        raise InputError(f"{folder}: not of the people of {faces}; expected another OUT for them")
    return folder


def build_listing(faces: Path) -> str:
    """Return the lines of a .lst with equally many images of the people with most images."""
    images = list(source_from_folders(faces, allow_empty=True).items())
    most = Counter(it.label for it in images).most_common(_PEOPLE)
    if len(most) < _PEOPLE:
        raise InputError(f"{faces}: {len(most)} identities; expected {_PEOPLE} or more")
    people = [[it.location for it in images if it.label == person][: most[-1][1]] for person, _ in most]
    chosen = [(label, Path(image).resolve()) for label, person in enumerate(people) for image in person]
    return "".join(f"{number}\t{label}\t{path}\n" for number, (label, path) in enumerate(chosen))


def case_overrides(pack: Path, case: str) -> list[str]:
    return [CASES[case], *_SETTINGS, f"data.path={pack}"]


def measure_finished_runs(out: Path, case: str, seeds: Sequence[int]) -> dict[int, RunMeasurement]:
    folders = {seed: run_folder(out, case, seed) for seed in seeds}
    return {seed: measure_run(folder) for seed, folder in folders.items() if (folder / SUMMARY_FILE).exists()}


def measure_run(run: Path) -> RunMeasurement:
    """Measure a run with the images of its pack."""
    recognizer = load(run)
    provenance = recognizer.provenance
    assert provenance is not None
    dataset = RecordDataset(Path(provenance.config.data.path), recognizer.network.input_size)
    embeddings = embed_iterable(recognizer, (dataset[image][0] for image in range(len(dataset))))
    centers = read_centers(resolve_checkpoint(run), 0, provenance.num_classes).float()
    return measure(embeddings, dataset.labels(), normalize(centers).numpy())


def measure(
    embeddings: NDArray[np.float32], labels: NDArray[np.int64], centers: NDArray[np.float32]
) -> RunMeasurement:
    """Measure embeddings `[n, 2]` and class centers `[C, 2]`, all L2-normalized."""
    right = (embeddings @ centers.T).argmax(axis=1) == labels
    classes = np.unique(labels)
    means = np.stack([embeddings[labels == label].mean(axis=0) for label in classes])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    own = means[np.searchsorted(classes, labels)]
    angles = np.degrees(np.arccos(np.clip((embeddings * own).sum(axis=1), -1, 1)))
    within = float(np.mean([angles[labels == label].mean() for label in classes]))
    places = np.sort(np.degrees(np.arctan2(means[:, 1], means[:, 0])))
    gaps = np.diff(places, append=places[0] + 360)
    return RunMeasurement(embeddings, labels, float(right.mean()), within, float(gaps.std()))


def to_rows(runs: Runs) -> list[dict[str, str | int | float]]:
    """Return the results of each run as rows."""
    return [
        {
            "case": case,
            "seed": seed,
            "right": it.accuracy,
            "within": it.mean_class_angle,
            "between": it.neighbor_angle_std,
        }
        for case, found in runs.items()
        for seed, it in found.items()
    ]


def format_table(runs: Runs) -> list[str]:
    """Return a Markdown table: angles of each loss, and paired differences from the first loss without
    collapsed runs.
    """
    first = next(iter(runs))
    lines = [
        "| | runs | collapsed | images at the correct center | within a class, degrees | against the first "
        "| deviation of the angles between neighbors, degrees | against the first |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, found in runs.items():
        good = {seed: it for seed, it in found.items() if not it.collapsed}
        both = (
            []
            if case == first
            else [it for it in good if it in runs[first] and not runs[first][it].collapsed]
        )
        cells = [case, str(len(found)), str(len(found) - len(good))]
        cells.append(f"{np.mean([it.accuracy for it in found.values()]):.1%}" if found else "")
        for name in ("mean_class_angle", "neighbor_angle_std"):
            cells.append(format_interval(np.array([getattr(it, name) for it in good.values()]), ".1f"))
            apart = [getattr(good[seed], name) - getattr(runs[first][seed], name) for seed in both]
            cells.append(format_interval(np.array(apart), "+.1f"))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def plot(runs: Runs, path: Path) -> None:
    """Plot the images of a seed's runs on the circle, one color per class."""
    seeds = [
        it
        for it in runs[next(iter(runs))]
        if all(it in found and not found[it].collapsed for found in runs.values())
    ]
    if not seeds:
        sys.exit(f"{path}: there is no seed with which every loss has a run that has not collapsed")
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(runs), figsize=(3.6 * len(runs), 3.8))
    for axis, (case, found) in zip(axes, runs.items(), strict=True):
        plot_circle(axis, case, found[seeds[0]])
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def plot_circle(axis: Axes, case: str, run: RunMeasurement) -> None:
    across, up = run.embeddings.T
    axis.scatter(across, up, s=6, c=mpl.colormaps["tab10"](run.labels), alpha=0.5)
    axis.set(
        title=f"{case}: within {run.mean_class_angle:.1f}, between {run.neighbor_angle_std:.1f}",
        aspect="equal",
    )
    axis.title.set_fontsize(9)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with exit_on_input_error():
        main()
