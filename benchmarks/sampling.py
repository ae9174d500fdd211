"""Benchmark of the host's part of a step of the head: sampling, with page faults, with and without malloc's thresholds.

    python -m benchmarks.sampling [--calls 50]

glibc maps and unmaps memory for every large temporary array, and the kernel zeros its pages again in each call. The
launcher raises the thresholds in the environment of the ranks. Both settings are measured in fresh processes, alternating.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from typing import Literal

import torch

from benchmarks.measurement import MeasurementRow
from partialfc.config import CosFace, HeadConfig
from partialfc.head.losses import LossSchedule
from partialfc.head.sampling import ClassSampler
from partialfc.runtime.platform import MALLOC_ENVIRONMENT

CASES = {  # classes, sample rate, ranks
    "1M ids, r = 0.1, 8 ranks": (1_000_000, 0.1, 8),
    "1M ids, r = 0.1, 1 rank": (1_000_000, 0.1, 1),
    "10M ids, r = 0.1, 8 ranks": (10_000_000, 0.1, 8),
}
BATCH, REPEATS = 1024, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps([measure(name, on, options.calls) for name in CASES for on in ("host", "device")]))
        return
    found: dict[tuple[str, str, bool], list[MeasurementRow]] = defaultdict(list)
    for _ in range(REPEATS):
        for raised in (False, True):
            for row in measure_in_process(options.calls, raised=raised):
                found[row["case"], row["sample_on"], raised].append(row)
    print("| case | rows | head.sample_on | thresholds | ms | page faults |\n|---|---|---|---|---|---|")
    for (case, on, raised), rows in found.items():
        milliseconds = statistics.median(row["ms"] for row in rows)
        faults = statistics.median(row["faults"] for row in rows)
        thresholds = "raised" if raised else "default"
        print(f"| {case} | {rows[0]['rows']:,} | {on} | {thresholds} | {milliseconds:.2f} | {faults:.0f} |")


def measure(name: str, on: Literal["host", "device"], calls: int) -> MeasurementRow:
    """Return the median time of the host, and the mean number of page faults of a call, after the first ones."""
    num_classes, rate, ranks = CASES[name]
    config = HeadConfig(sample_rate=rate, sample_on=on)
    loss = LossSchedule(CosFace(), None, num_classes * rate, torch.device("cpu"), torch.float32)(0)
    sampler = ClassSampler(
        num_classes,
        range(num_classes // ranks),
        config,
        steps_per_epoch=None,
        seed=0,
        uses_stochastic_rounding=False,
        dtype=torch.float32,
        neighbors=None,
    )
    labels = torch.randint(num_classes, (calls + 5, BATCH), generator=torch.Generator().manual_seed(0))
    times = []
    for step in range(calls + 5):
        if step == 5:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        began = time.perf_counter()
        classes = sampler(labels[step], step, loss)
        times.append(1000 * (time.perf_counter() - began))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {
        "case": name, "sample_on": on, "rows": classes.num_active, "ms": statistics.median(times[5:]),
        "faults": faults / calls,
    }  # fmt: skip


def measure_in_process(calls: int, *, raised: bool) -> list[MeasurementRow]:
    """Measure all cases in a fresh process, with the launcher's environment or glibc's defaults."""
    environment = {name: value for name, value in os.environ.items() if name not in MALLOC_ENVIRONMENT}
    environment |= MALLOC_ENVIRONMENT if raised else {}
    command = [sys.executable, "-m", "benchmarks.sampling", "--one", "--calls", str(calls)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    rows: list[MeasurementRow] = json.loads(done.stdout)
    return rows


if __name__ == "__main__":
    main()
