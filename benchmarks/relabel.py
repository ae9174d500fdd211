"""Benchmark of `partialfc relabel`: recall of split and of merged identities, and duration.

    python -m benchmarks.relabel PACK EMBEDDINGS [--identities 50] [--merge 0.75] [--split 0.2] [--size C]

EMBEDDINGS is the output of `partialfc embed MODEL PACK EMBEDDINGS`. Labels are changed, no pack is written.
Other findings may be correct: packs contain such identities. With --size, the means of C random identities
are compared as well.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.process_memory import ProcessMemory
from partialfc.data import RecordDataset
from partialfc.data.fingerprint import pack_fingerprint
from partialfc.data.stored_embeddings import StoredEmbeddings
from partialfc.errors import InputError
from partialfc.inference.class_means import compute_class_means
from partialfc.inference.relabeling import find_duplicate_identities, find_mixed_identities

_MIN_IMAGES = 4  # images per planted identity


@dataclass(frozen=True)
class Planted:
    """Labels with split and merged identities."""

    labels: NDArray[np.int64]
    count: int  # number of classes
    cut: set[tuple[int, int]]  # labels of one person
    joined: set[int]  # labels of two people


def main() -> None:
    parser = argparse.ArgumentParser(description="Planted identities: how many are found.")
    parser.add_argument("pack", type=Path)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--identities", type=int, default=50)
    parser.add_argument("--merge", type=float, default=0.75)
    parser.add_argument("--split", type=float, default=0.2)
    parser.add_argument("--size", type=int)
    arguments = parser.parse_args()
    try:
        dataset, embeddings = RecordDataset(arguments.pack), StoredEmbeddings(arguments.embeddings)
        embeddings.check_pack(pack_fingerprint(arguments.pack), arguments.pack)
    except (InputError, OSError) as error:
        parser.error(str(error))
    labels = dataset.labels()
    planted = plant_errors(labels, dataset.num_classes, arguments.identities)
    mixed = {it.label for it in find_mixed_identities(embeddings, planted.labels, arguments.split)}
    means = compute_class_means(embeddings, planted.labels, planted.count)
    means[sorted(mixed)] = 0
    alike = {
        (it.first, it.second) for it in find_duplicate_identities(torch.from_numpy(means), arguments.merge)
    }
    for what, found, expected in (("cut", alike, planted.cut), ("joined", mixed, planted.joined)):
        print(
            f"{len(found & expected)} of {len(expected)} identities that were {what} are found, {len(found - expected)} others"
        )
    if arguments.size:
        _benchmark_comparison(arguments.size, embeddings.embedding_size)


def plant_errors(labels: NDArray[np.int64], count: int, identities: int) -> Planted:
    """Plant `identities` errors of each kind, on people with enough images."""
    images = np.bincount(labels, minlength=count)
    generator = np.random.default_rng(0)
    several = generator.permutation(np.flatnonzero(images >= 2 * _MIN_IMAGES))
    to_cut, to_join = several[:identities].tolist(), several[identities : 2 * identities].tolist()
    others = generator.permutation(
        np.setdiff1d(np.flatnonzero(images >= _MIN_IMAGES), [*to_cut, *to_join])
    ).tolist()
    changed, cut = labels.copy(), set()
    for place, label in enumerate(to_cut):
        own = generator.permutation(np.flatnonzero(labels == label))
        changed[own[: len(own) // 2]] = count + place
        cut.add((label, count + place))
    joined = list(zip(to_join, others, strict=False))
    for label, other in joined:
        changed[labels == other] = label
    return Planted(changed, count + len(to_cut), cut, {label for label, _ in joined})


def _benchmark_comparison(size: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.nn.functional.normalize(torch.randn(size, width, generator=generator))
    memory, start = ProcessMemory("cpu"), time.perf_counter()
    found = sum(1 for _ in find_duplicate_identities(means, 0.9))
    seconds, more = time.perf_counter() - start, memory.peak() / 2**20
    print(
        f"{size} means of {width} components compared in {seconds:.0f} s, {more:.0f} MiB more at most; {found} alike"
    )


if __name__ == "__main__":
    main()
