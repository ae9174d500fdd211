"""Benchmark of saving a head: duration of the step that saves, relative to one copy of the state, and
slowdown of the steps during the write.

    python -m benchmarks.checkpoint FOLDER                             # a million identities on two ranks.
    python -m benchmarks.checkpoint FOLDER --memory host               # rows in host memory are not copied.
    python -m benchmarks.checkpoint FOLDER --device cuda --ranks 1

FOLDER is on the disk to test.
"""

import argparse
import json
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table

from benchmarks.measurement import MeasurementRow
from partialfc.config import CosFace, HeadConfig
from partialfc.head import PartialFC
from partialfc.runtime import comm, dtensors
from partialfc.runtime.checkpoint import CheckpointManager
from partialfc.runtime.comm import DistContext

WIDTH = 512
_STEPS = 30  # for the medians, before the saves and between them
_STEPS_BETWEEN_SAVES = 1000  # assumed steps between two saves, for the relative cost


class TimedSteps:
    """Individually timed steps of a head on random labels."""

    def __init__(self, options: argparse.Namespace, dist_ctx: DistContext) -> None:
        config = HeadConfig(sample_rate=options.sample_rate, memory=options.memory)
        self.head = PartialFC(options.identities, WIDTH, CosFace(), config=config, device=dist_ctx.device)
        self._options, self._dist_ctx, self.taken = options, dist_ctx, 0
        self._draw = torch.Generator().manual_seed(0)

    def step(self) -> float:
        """Return the seconds of one step on the slowest rank."""
        batch, device = self._options.batch, self._dist_ctx.device
        labels = torch.randint(self._options.identities, (batch,), generator=self._draw)
        step = self.head.prepare(labels, self.taken)
        embeddings = torch.randn(batch // self._dist_ctx.world_size, WIDTH, device=device, requires_grad=True)
        began = time.perf_counter()
        self.head(embeddings, step).backward()
        self.head.update(step, 0.1)
        _synchronize(self._dist_ctx)
        self.taken += 1
        return time.perf_counter() - began

    def median(self) -> float:
        """Return the median of this many steps."""
        return statistics.median(self.step() for _ in range(_STEPS))


def _synchronize(dist_ctx: DistContext) -> None:
    if dist_ctx.device.type == "cuda":
        torch.cuda.synchronize()
    comm.barrier(dist_ctx.host_group)


class TimedCopy:
    """Copy of this rank's state to fixed host memory."""

    def __init__(self, head: PartialFC, dist_ctx: DistContext) -> None:
        self._dist_ctx = dist_ctx
        self._rows = [dtensors.local_rows_and_offset(it)[0] for it in head.state_dict().values()]
        self._copies = [torch.zeros(it.shape, dtype=it.dtype, pin_memory=it.is_cuda) for it in self._rows]
        self.bytes = sum(it.nbytes for it in self._rows)

    def run(self) -> float:
        """Return the seconds of a copy."""
        _synchronize(self._dist_ctx)
        began = time.perf_counter()
        for copy, tensor in zip(self._copies, self._rows, strict=True):
            copy.copy_(tensor, non_blocking=True)
        _synchronize(self._dist_ctx)
        return time.perf_counter() - began


def save_and_step(
    steps: TimedSteps, copy: TimedCopy, checkpoints: CheckpointManager, dist_ctx: DistContext
) -> MeasurementRow:
    """Run one copy, one save with steps until it is on disk, and some steps without a save."""
    copied = copy.run()
    streamed = steps.head.snapshot()
    _synchronize(dist_ctx)
    began = time.perf_counter()
    checkpoints.save(steps.taken, steps.head.state_dict(), {}, elapsed_seconds=0.0, streamed=streamed)
    _synchronize(dist_ctx)
    stalled, during, outcome = time.perf_counter() - began, [], None
    while not all(comm.all_gather_object(outcome is not None, dist_ctx.host_group)):
        during.append(steps.step())
        outcome = outcome or checkpoints.poll()
    assert outcome is not None and outcome.problem is None, outcome
    usual = steps.median()
    cost = stalled + sum(during) - len(during) * usual
    return {
        "bytes": copy.bytes,
        "copy_ms": 1000 * copied,
        "stalled_ms": 1000 * stalled,
        "steps_meanwhile": len(during),
        "written_s": outcome.write_seconds,
        "step_meanwhile_ms": 1000 * statistics.median(during),
        "step_ms": 1000 * usual,
        "ratio": statistics.median(during) / usual,
        "share": cost / (_STEPS_BETWEEN_SAVES * usual),
    }


def rank_main(options: argparse.Namespace, rank: int, folder: str, pipe: Connection) -> None:
    """Run one rank; rank 0 sends the rows."""
    torch.set_num_threads(1)
    on_gpu = options.device == "cuda"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    store = dist.FileStore(f"{folder}/store", options.ranks)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=options.ranks)
    dist_ctx = comm.create_dist_context(device)
    steps = TimedSteps(options, dist_ctx)
    checkpoints = CheckpointManager(Path(folder), keep=1, dist_ctx=dist_ctx)
    streamed = steps.head.snapshot()
    checkpoints.preallocate(steps.head.state_dict(), streamed)
    for frozen in streamed.values():
        frozen.close()
    steps.median()
    copy, case = TimedCopy(steps.head, dist_ctx), f"{options.identities} identities, memory {options.memory}"
    rows = [{"case": case, **save_and_step(steps, copy, checkpoints, dist_ctx)} for _ in range(options.saves)]
    if dist_ctx.is_main:
        pipe.send(rows)
    dist.destroy_process_group()


def run_benchmark(options: argparse.Namespace) -> list[MeasurementRow]:
    context = mp.get_context("spawn")
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        ours, theirs = context.Pipe()
        processes = [
            context.Process(target=rank_main, args=(options, rank, folder, theirs))
            for rank in range(options.ranks)
        ]
        for process in processes:
            process.start()
        theirs.close()
        rows: list[MeasurementRow] = ours.recv()
        for process in processes:
            process.join()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where a folder is made for the checkpoints, and removed")
    parser.add_argument("--identities", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="over all ranks")
    parser.add_argument("--sample-rate", type=float, default=0.1)
    parser.add_argument("--memory", choices=["device", "host"], default="device")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = run_benchmark(options)
    table = Table(*(name for name in rows[0] if name != "case"), title=rows[0]["case"])
    for row in rows:
        table.add_row(
            *(
                f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
                for name, value in row.items()
                if name != "case"
            )
        )
    Console(width=160).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
