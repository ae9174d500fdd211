"""Sections of benchmarks/gpu.py on a step of the head: PartialFC, a textbook one, and insightface's."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.gpu_sections import BenchmarkMachine, gpu_events, try_row
from benchmarks.measurement import MeasurementRow
from benchmarks.textbook_head import LR, MARGIN, OPTIM, BenchmarkCase, TextbookHead, fake_gather
from partialfc.config import Config, DataConfig, HeadConfig, IResNetTiny, TrainConfig
from partialfc.head import PartialFC
from partialfc.plan import PlannedRun

CASES = {
    "1M ids, r 0.1, 1 rank": (1_000_000, 0.1, 1),
    "1M ids, r 0.1, 8 ranks": (1_000_000, 0.1, 8),
    "10M ids, r 0.1, 8 ranks": (10_000_000, 0.1, 8),
    "360k ids, r 1, 8 ranks": (360_000, 1.0, 8),
}
OPTIONS: list[dict[str, Any]] = [
    {"matmul_precision": "half"},
    {"matmul_precision": "tf32"},
    {"matmul_precision": "float32"},
    {"matmul_precision": "half", "sample_on": "device"},
]


def benchmark_heads(machine: BenchmarkMachine) -> list[MeasurementRow]:
    """Benchmark a step of the head on one rank, of one or of eight with simulated communication.

    Compared are PartialFC with and without Triton kernels, a textbook implementation, and insightface's if
    available.
    """
    rows = []
    for name, (classes, rate, world_size) in CASES.items():
        case = BenchmarkCase(
            machine.scale_size(classes), batch=machine.batch // world_size, width=machine.width, world_size=world_size, steps=50, threads=1,
            device=machine.device.type, head=HeadConfig(sample_rate=rate), one_rank=True, textbook=False,
        )  # fmt: skip
        with _fake_ranks(machine, world_size):
            for kernels in ("triton", "torch") if not machine.is_dry_run else ("torch",):
                for options in OPTIONS:
                    config = msgspec.structs.replace(case.head, kernels=kernels, **options)
                    rows.append(try_row({"case": name}, _benchmark_ours, machine, replace(case, head=config)))
            title = {"case": name, "head": "textbook"}
            rows.append(try_row(title, _benchmark_other, machine, case, partial(TextbookHead, case, 0)))
            for half in (True, False) if machine.insightface is not None else ():
                title = {"case": name, "head": "insightface" + ", fp16" * half}
                rows.append(
                    try_row(
                        title,
                        _benchmark_other,
                        machine,
                        case,
                        partial(_InsightFaceHead, case, machine.insightface, half),
                    )
                )
    return rows


def _fake_ranks(machine: BenchmarkMachine, world_size: int) -> AbstractContextManager[object]:
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    return fake_gather(torch.randn(machine.batch, machine.width, device=machine.device))


def _benchmark_ours(machine: BenchmarkMachine, case: BenchmarkCase) -> MeasurementRow:
    machine.peak_memory()
    head = PartialFC(
        case.num_classes, machine.width, MARGIN, config=case.head, optim=OPTIM, device=machine.device
    )
    step = make_step(machine, head, case)
    taken, on_host = machine.milliseconds(step, 50)
    config = Config(
        data=DataConfig(path=""), train=TrainConfig(length=1, global_batch_size=machine.batch), backbone=IResNetTiny(embedding_size=machine.width),
        head=case.head, loss=MARGIN, optim=OPTIM,
    )  # fmt: skip
    job = PlannedRun(config, case.num_classes, case.world_size, device=machine.device.type)
    return {
        "head": "ours", "kernels": case.head.kernels, "products": case.head.matmul_precision, "sample_on": case.head.sample_on, "ms": taken, "host_ms": on_host,
        "gpu_ms": machine.gpu_busy_time(step, 5)[0] / 5, "launches": count_launches(machine, step), "peak_bytes": machine.peak_memory(), "planned_bytes": sum(job.head_memory().values()),
        "teraflops": job.head_flops() / taken / 1e9, "gigabytes_per_second": job.head_memory_traffic() / taken / 1e6,
    }  # fmt: skip


def make_step(machine: BenchmarkMachine, head: PartialFC, case: BenchmarkCase) -> Callable[[], None]:
    """Return a function that runs the next step of a head and then prepares its successor, as in training."""
    batches = [case.embeddings(number)[: case.batch].to(machine.device) for number in range(4)]
    labels = [case.labels(number) for number in range(4)]
    ahead = [head.prepare(labels[0], 0)]

    def step() -> None:
        now = ahead[0]
        embeddings = batches[now.number % 4].clone().requires_grad_()
        head(embeddings, now).backward()
        head.update(now, LR)
        ahead[0] = head.prepare(labels[(now.number + 1) % 4], now.number + 1)

    return step


def count_launches(machine: BenchmarkMachine, function: Callable[[], object]) -> int:
    """Return how many kernels and copies a call launches."""
    if machine.is_dry_run:
        return 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        machine.wait()
    return len(gpu_events(profile))


class _InsightFaceHead:
    """PartialFC_V2 of insightface's arcface_torch, from a local folder, with the steps of its training
    script.
    """

    def __init__(self, case: BenchmarkCase, folder: Path | None, half: bool) -> None:
        sys.path.insert(0, str(folder))
        from losses import CombinedMarginLoss  # type: ignore[import-not-found]
        from partial_fc_v2 import PartialFC_V2  # type: ignore[import-not-found]

        loss = CombinedMarginLoss(64, 1.0, 0.0, MARGIN.margin)
        self._head = PartialFC_V2(loss, case.width, case.num_classes, case.head.sample_rate, half)
        self._head.train().to(case.device)
        self._optimizer = torch.optim.SGD(
            self._head.parameters(), LR, momentum=OPTIM.momentum, weight_decay=5e-4
        )
        self._batch = case.batch

    def step(self, embeddings: Tensor, labels: Tensor) -> None:
        local = labels[: self._batch].to(embeddings.device)
        self._head(embeddings, local).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def _benchmark_other(
    machine: BenchmarkMachine, case: BenchmarkCase, made: "Callable[[], TextbookHead | _InsightFaceHead]"
) -> MeasurementRow:
    machine.peak_memory()
    head = made()
    batches = [case.embeddings(number)[: case.batch].to(machine.device) for number in range(4)]
    labels = [case.labels(number) for number in range(4)]
    numbers = count()

    def step() -> None:
        number = next(numbers) % 4
        head.step(batches[number].clone().requires_grad_(), labels[number])

    taken, on_host = machine.milliseconds(step, 10)
    return {
        "ms": taken,
        "host_ms": on_host,
        "gpu_ms": machine.gpu_busy_time(step, 5)[0] / 5,
        "peak_bytes": machine.peak_memory(),
    }
