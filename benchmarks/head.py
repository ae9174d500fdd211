"""Benchmark of a step of the head: PartialFC, a textbook implementation, and a lower bound; memory is compared
with the plan.

    python -m benchmarks.head                                              # cases of docs/explanation/performance.md.
    python -m benchmarks.head 4000000:0.01 --no-textbook                   # PartialFC only.
    python -m benchmarks.head 100000000:0.01 --one-rank --world-size 64    # one rank of a large world.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.measurement import MeasurementRow
from benchmarks.process_memory import ProcessMemory
from benchmarks.textbook_head import LR, MARGIN, OPTIM, BenchmarkCase, LowerBound, TextbookHead, fake_gather
from partialfc.config import Config, DataConfig, HeadConfig, IResNetTiny, TrainConfig
from partialfc.errors import InputError
from partialfc.head import PartialFC
from partialfc.plan import PlannedRun
from partialfc.runtime.exit_codes import exit_on_input_error


class OurHead:
    def __init__(self, case: BenchmarkCase) -> None:
        self._head = PartialFC(
            case.num_classes, case.width, MARGIN, config=case.head, optim=OPTIM, device=case.device
        )
        self._case, self._steps = case, 0
        self._ahead = self._head.prepare(case.labels(0), 0)

    def step(self, embeddings: Tensor, labels: Tensor) -> None:
        """Run forward, backward and update with this rank's embeddings `[b, D]` and all labels `[B]`.

        Prepares the next step, as training does.
        """
        self._steps += 1
        step, self._ahead = self._ahead, self._head.prepare(self._case.labels(self._steps), self._steps)
        local = embeddings.requires_grad_()
        self._head(local, step).backward()
        self._head.update(step, LR)


def time_call(function: Callable[..., None], *args: Tensor) -> tuple[float, float]:
    """Return the milliseconds until all ranks have finished, and until this rank's host has."""
    synchronize()
    began = time.perf_counter()
    function(*args)
    on_host = time.perf_counter()
    synchronize()
    return 1000 * (time.perf_counter() - began), 1000 * (on_host - began)


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    dist.barrier()


def measure(case: BenchmarkCase, rank: int) -> MeasurementRow:
    row, times = time_heads(case, rank)
    plain = case.head == HeadConfig(sample_rate=case.head.sample_rate)
    floor = LowerBound(case) if plain else None  # needs as much memory as the head, which is freed first
    parts = {"products": floor.matmuls, "traffic": floor.memory_traffic} if floor else {}
    bare = {
        name: statistics.median([time_call(function)[0] for _ in range(5)][1:])
        for name, function in parts.items()
    }
    return build_row(case, row, times, bare)


def time_heads(case: BenchmarkCase, rank: int) -> tuple[MeasurementRow, dict[str, list[float]]]:
    """Return the results of PartialFC's first steps, and the milliseconds of the later steps."""
    taken = ProcessMemory(case.device)
    ours = OurHead(case)
    row: MeasurementRow = {"first_step_ms": time_call(ours.step, *inputs(case, 0, rank))[0]}
    time_call(ours.step, *inputs(case, 1, rank))
    heads: dict[str, Any] = {"ours": ours}
    row["resident_bytes"] = taken.peak()
    if case.textbook:
        heads["textbook"] = TextbookHead(case, rank)
        time_call(heads["textbook"].step, *inputs(case, 0, rank))
    times: dict[str, list[float]] = {name: [] for name in (*heads, "host")}
    for step in range(2, 2 + case.steps):
        for name, head in heads.items():
            until, on_host = time_call(head.step, *inputs(case, step, rank))
            times[name].append(until)
            if name == "ours":
                times["host"].append(on_host)
    if not case.textbook:
        row["resident_bytes"] = taken.peak()
    return row | {"resident_file_bytes": taken.file_backed()}, times


def inputs(case: BenchmarkCase, step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return the embeddings `[b, D]` of a rank, and all labels `[B]`."""
    embeddings = case.embeddings(step).chunk(case.world_size)[rank]
    return embeddings.to(case.device, copy=True), case.labels(step)


def build_row(
    case: BenchmarkCase, row: MeasurementRow, times: dict[str, list[float]], bare: dict[str, float]
) -> MeasurementRow:
    ours, job = times["ours"], planned_run(case)
    median = statistics.median(ours)
    shape = {name: getattr(case, name) for name in ("num_classes", "batch", "width", "world_size", "device")}
    stored = {
        name: size for name, size in job.head_memory().items() if name in ("class centers", "their moments")
    }
    row = {
        "case": f"{case.num_classes:,} ids, r = {case.head.sample_rate:g}",
        **shape,
        **{field: getattr(case.head, field) for field in ("sample_rate", *HEAD_OPTIONS)},
        **row,
        "ours_ms": median,
        "host_ms": statistics.median(times["host"]),
        "ours_spread_ms": max(ours) - min(ours),
        "planned_bytes": sum(job.head_memory().values()),
        "planned_host_bytes": sum(job.host_memory().values()),
        "extra_bytes": row["resident_bytes"] - sum(stored.values()),
        "gflops": job.head_flops() / median / 1e6,
    }
    if bare:
        row |= {f"{name}_ms": value for name, value in bare.items()} | {
            "over_floor": median / sum(bare.values())
        }
    if case.textbook:
        row["textbook_ms"] = statistics.median(times["textbook"])
        row["ratio"] = row["textbook_ms"] / median
    return row


def planned_run(case: BenchmarkCase) -> PlannedRun:
    config = Config(
        data=DataConfig(path=""),
        train=TrainConfig(length=1, global_batch_size=case.batch * case.world_size),
        backbone=IResNetTiny(embedding_size=case.width),
        head=case.head,
        loss=MARGIN,
        optim=OPTIM,
    )
    return PlannedRun(config, case.num_classes, case.world_size, device=case.device)


def rank_main(case: BenchmarkCase, rank: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(case.threads)
    torch.manual_seed(rank)
    if case.device == "cuda":
        torch.cuda.set_device(rank)
    if case.one_rank:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=case.world_size)
    else:
        backend = "nccl" if case.device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=case.world_size)
    with fake_gather(case.embeddings(0).to(case.device)) if case.one_rank else nullcontext():
        pipe.send(measure(case, rank))
    dist.destroy_process_group()


def run(case: BenchmarkCase) -> MeasurementRow:
    """Run all ranks and return the results of rank 0; a step ends when all ranks have finished."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = 1 if case.one_rank else case.world_size
        pipes = [context.Pipe(duplex=False) for _ in range(processes)]
        ranks = [
            context.Process(target=rank_main, args=(case, rank, f"{folder}/store", sender))
            for rank, (_, sender) in enumerate(pipes)
        ]
        for process, (_, sender) in zip(ranks, pipes, strict=True):
            process.start()
            sender.close()  # so that the exit of a rank ends the wait
        rows: list[MeasurementRow] = [receiver.recv() for receiver, _ in pipes]
        for process in ranks:
            process.join()
    return max(rows, key=lambda row: row["resident_bytes"])


HEAD_OPTIONS = ("centers_dtype", "optim_state_dtype", "memory", "unsampled")
COLUMNS = {
    "case": 1, "textbook_ms": 1, "ours_ms": 1, "host_ms": 1, "ratio": 1, "ours_spread_ms": 1, "first_step_ms": 1, "products_ms": 1,
    "traffic_ms": 1, "over_floor": 1, "gflops": 1, "resident_bytes": 1e-6, "planned_bytes": 1e-6, "extra_bytes": 1e-6,
}  # fmt: skip


def print_table(rows: Sequence[MeasurementRow]) -> None:
    table = Table()
    for name in COLUMNS:
        table.add_column(name.replace("_bytes", ", MB").replace("_ms", ", ms").replace("_", " "))
    for row in rows:
        cells = [row.get(name, "-") for name in COLUMNS]
        scaled = [
            cell if isinstance(cell, str) else f"{cell * COLUMNS[name]:.4g}"
            for name, cell in zip(COLUMNS, cells, strict=True)
        ]
        table.add_row(*scaled)
    Console(width=180).print(table)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases",
        nargs="*",
        default=["1000000:0.1", "1000000:0.02", "100000:1"],
        help="CLASSES:RATE, one or several",
    )
    parser.add_argument("--batch", type=int, default=64, help="images on a rank")
    parser.add_argument("--width", type=int, default=512, help="of the embeddings")
    parser.add_argument("--world-size", type=int, help="2; on GPUs, as many as there are")
    parser.add_argument("--one-rank", action="store_true", help="run only the first of --world-size ranks")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each head")
    parser.add_argument("--no-textbook", action="store_true", help="time PartialFC only, in half the memory")
    for name in HEAD_OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"as head.{name} of a recipe")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    return parser.parse_args()


def parse_case(text: str, options: argparse.Namespace) -> tuple[int, HeadConfig]:
    """Parse CLASSES:RATE with the settings of the head."""
    try:
        classes, rate = text.split(":")
        kept = {name: value for name in HEAD_OPTIONS if (value := getattr(options, name)) is not None}
        return int(classes), msgspec.convert({"sample_rate": float(rate), **kept}, HeadConfig)
    except (ValueError, msgspec.ValidationError) as error:
        raise InputError(
            f"case {text}: {error}; expected CLASSES:RATE, and settings of a recipe's head"
        ) from None


def main() -> None:
    with exit_on_input_error():
        run_benchmark(parse_args())


def run_benchmark(options: argparse.Namespace) -> None:
    world_size = options.world_size or (torch.cuda.device_count() if options.device == "cuda" else 2)
    processes = 1 if options.one_rank else world_size
    if options.device == "cuda" and processes > torch.cuda.device_count():
        raise InputError(
            f"--world-size {processes}: found {torch.cuda.device_count()} GPU(s); expected one each"
        )
    rows = []
    for text in options.cases:
        classes, head = parse_case(text, options)
        case = BenchmarkCase(
            classes,
            batch=options.batch,
            width=options.width,
            world_size=world_size,
            steps=options.steps,
            threads=max(1, len(os.sched_getaffinity(0)) // processes),
            device=options.device,
            head=head,
            one_rank=options.one_rank,
            textbook=not (options.no_textbook or options.one_rank),
        )
        rows.append(run(case))
        print_table(rows[-1:])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
