"""Benchmark of the data path on a pack, in images per second and core: reading, decoding, the full loader,
and mxnet's pipeline.

The last one requires the environment of ./test.sh --mxnet.

    python -m benchmarks.loader PACK
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from partialfc.config import AugmentConfig, DataConfig
from partialfc.data import RecordDataset, images
from partialfc.data.dataset import find_record_file
from partialfc.data.lanes import WINDOW
from partialfc.data.loader import BatchLoader
from partialfc.data.sampler import SampleOrder
from partialfc.runtime import comm
from partialfc.runtime.exit_codes import exit_on_input_error

BATCH, LANES = 128, 64
MXNET = Path(__file__).parents[1] / ".venv-mxnet/bin/python"


def images_per_second(function: Callable[[Any], Any], items: Sequence[Any]) -> float:
    """Return the images per second, the best of three passes."""
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        for item in items:
            function(item)
        best = max(best, len(items) / (time.perf_counter() - began))
    return best


def loader_rate(dataset: RecordDataset, workers: int, batches: int, lanes: int | None = None) -> float:
    """Return the rate of the training loader, without the first batches, during which workers start."""
    with comm.init_distributed("cpu") as dist_ctx:
        config = DataConfig(path=str(dataset.path.parent), num_workers=workers)
        loader = BatchLoader(
            dataset, SampleOrder(0, BATCH, len(dataset), lanes), config, AugmentConfig(), dist_ctx
        )
        stream, warm = loader.batches(0, batches + 8), 8
        for _ in range(warm):
            next(stream)
        began, count = time.perf_counter(), 0
        for batch in stream:
            count, ended = count + len(batch.images), time.perf_counter()
        return count / (ended - began)  # the rest is the shutdown of the workers


def cold_rates(folder: Path, workers: int, batches: int) -> dict[str, float]:
    """Return the rates of both orders with a cold page cache.

    Lanes, which read their windows first, get that many more batches.
    """
    rates = {}
    for order, lanes in (("shuffle", None), ("blocks", LANES)):
        with find_record_file(folder).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        more = LANES * WINDOW // BATCH if lanes else 0
        rates[f"cold, {order}"] = loader_rate(RecordDataset(folder), workers, batches + more, lanes)
    return rates


def mxnet_rate(path: Path, keys: list[int]) -> float | None:
    """Return the rate of mxnet; None if it is not installed or cannot read a pack without .idx."""
    if not MXNET.exists() or not path.with_suffix(".idx").exists():
        return None
    command = [str(MXNET), str(Path(__file__).with_name("mxnet_loader.py")), str(path), *map(str, keys)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def measure(folder: Path, count: int, workers: int) -> dict[str, float | None]:
    dataset = RecordDataset(folder)
    samples = np.random.default_rng(0).integers(0, len(dataset), count).tolist()
    contents = [dataset.encoded_image(sample) for sample in samples]
    decode = images_per_second(images.decode, contents)
    loader = loader_rate(dataset, workers, count // BATCH * 3)
    usual = mxnet_rate(dataset.path, [dataset.key(sample) for sample in samples])
    return {
        "read": images_per_second(dataset.encoded_image, samples),
        "decode": decode,
        "read and decode": images_per_second(dataset.__getitem__, samples),
        f"whole loader, {workers} worker(s)": loader,
        "loader a worker / decode": loader / max(1, workers) / decode,
        "usual mxnet pipeline, one process": usual,
        "loader a worker / usual": loader / max(1, workers) / usual if usual else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pack", type=Path, help="folder with train.rec")
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--cold", action="store_true", help="both orders, from the disk; requires a pack larger than memory"
    )
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with exit_on_input_error():
        if options.cold:
            figures: dict[str, float | None] = dict(
                cold_rates(options.pack, options.workers, options.images // BATCH)
            )
        else:
            figures = measure(options.pack, options.images, options.workers)
    table = Table("", "images/s, or a ratio")
    for name, figure in figures.items():
        table.add_row(name, "-" if figure is None else f"{figure:,.3g}" if figure < 100 else f"{figure:,.0f}")
    Console().print(table)
    if options.json:
        row = {"case": str(options.pack), "images": options.images, **figures}
        options.json.write_text(json.dumps([row], indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
