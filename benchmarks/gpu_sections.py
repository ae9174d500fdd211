"""Sections of benchmarks/gpu.py on the machine and on numerical agreement: functions that return rows.

Each runs in a separate process. Without a GPU every section runs on the CPU at tiny sizes, as a dry run.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measurement import MeasurementRow
from benchmarks.textbook_head import LR, MARGIN, OPTIM
from partialfc.config import HeadConfig
from partialfc.head import PartialFC


@dataclass(frozen=True)
class BenchmarkMachine:
    """Machine of the benchmark."""

    device: torch.device
    insightface: Path | None  # folder with insightface's partial_fc_v2.py and losses.py

    @property
    def is_dry_run(self) -> bool:
        """True if there is no GPU."""
        return self.device.type == "cpu"

    @property
    def width(self) -> int:
        """Embedding size D."""
        return 32 if self.is_dry_run else 512

    @property
    def batch(self) -> int:
        """Global batch size B of the head."""
        return 64 if self.is_dry_run else 1024

    def scale_size(self, size: int) -> int:
        """Return a size, or a tiny one for a dry run."""
        return max(2048, size // 4096) if self.is_dry_run else size

    def milliseconds(self, function: Callable[[], object], count: int) -> tuple[float, float]:
        """Return the milliseconds per call over `count` consecutive calls, for the device and for the host."""
        for _ in range(3):
            function()
        self.wait()
        count = 2 if self.is_dry_run else count
        began = time.perf_counter()
        for _ in range(count):
            function()
        on_host = time.perf_counter() - began
        self.wait()
        return 1000 * (time.perf_counter() - began) / count, 1000 * on_host / count

    def gpu_busy_time(self, function: Callable[[], object], count: int) -> tuple[float, float]:
        """Return the milliseconds during which a kernel or copy runs in `count` calls, and the total
        duration.
        """
        if self.is_dry_run:
            return 0.0, 0.0
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(count):
                function()
            self.wait()
        spans = sorted((it.time_range.start, it.time_range.end) for it in gpu_events(profile))
        busy, end = 0.0, spans[0][0]
        for begin, until in spans:
            busy += max(0.0, until - max(begin, end))
            end = max(end, until)
        return busy / 1000, (end - spans[0][0]) / 1000

    def wait(self) -> None:
        """Synchronize with the device."""
        if not self.is_dry_run:
            torch.cuda.synchronize(self.device)

    def peak_memory(self) -> int:
        """Return the peak of allocated bytes since the last call."""
        if self.is_dry_run:
            return 0
        most = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return most


def gpu_events(profile: torch.profiler.profile) -> list[Any]:
    """Return the events of a profile that ran on a GPU."""
    return [it for it in profile.events() if it.device_type == torch.autograd.DeviceType.CUDA]


def try_row(
    title: MeasurementRow, function: Callable[..., MeasurementRow], *arguments: Any
) -> MeasurementRow:
    """Return a row, or a row with the error, so that the others are measured."""
    try:
        return title | function(*arguments)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return title | {"failed": f"{type(error).__name__}: {lines[0]}"}


def describe_machine(machine: BenchmarkMachine) -> list[MeasurementRow]:
    """Describe the machine."""
    row: MeasurementRow = {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
    }
    row["triton"] = importlib.util.find_spec("triton") is not None
    if not machine.is_dry_run:
        properties = torch.cuda.get_device_properties(machine.device)
        row |= {"gpu": properties.name, "bytes": properties.total_memory, "cuda": torch.version.cuda}
        row["capability"] = f"{properties.major}.{properties.minor}"
    return [row]


def measure_ceilings(machine: BenchmarkMachine) -> list[MeasurementRow]:
    """Measure copy bandwidth, matmul throughput at the head's shapes, and launch overhead on the host."""
    size = machine.scale_size(1 << 28)
    source, target = (torch.ones(size, device=machine.device) for _ in range(2))
    taken, _ = machine.milliseconds(lambda: target.copy_(source), 20)
    rows: list[MeasurementRow] = [{"what": "copy", "gigabytes_per_second": 8 * size / taken / 1e6}]
    count = machine.scale_size(100_000)
    matmul = torch.backends.cuda.matmul
    for name, kind in (("ieee", torch.float32), ("tf32", torch.float32), ("half", torch.float16), ("bfloat16", torch.bfloat16)):  # fmt: skip
        left = torch.randn(count, machine.width, device=machine.device).to(kind)
        right = torch.randn(machine.width, machine.batch, device=machine.device).to(kind)
        before = matmul.fp32_precision
        matmul.fp32_precision = name if kind == torch.float32 else before
        taken, _ = machine.milliseconds(partial(torch.mm, left, right), 20)
        matmul.fp32_precision = before
        rows.append(
            {"what": f"product, {name}", "teraflops": 2 * count * machine.width * machine.batch / taken / 1e9}
        )
    small = torch.ones(1024, device=machine.device)
    _, on_host = machine.milliseconds(lambda: small.add_(1), 500)
    return [*rows, {"what": "launch", "microseconds": 1000 * on_host}]


def check_agreement(machine: BenchmarkMachine) -> list[MeasurementRow]:
    """Compare kernels with torch functions, matmul precisions with float32, and two identical runs bitwise."""
    rows = []
    settings: list[MeasurementRow] = [
        {},
        {"unsampled": "decay"},
        {"centers_dtype": "bfloat16", "optim_state_dtype": "bfloat16"},
        {"logits_budget": 0},
    ]
    for options in settings:
        exact = _run_steps(machine, kernels="torch", matmul_precision="float32", **options)
        for kernels in ("torch", "triton"):
            for products in ("float32", "tf32", "half"):
                title = {**options, "kernels": kernels, "matmul_precision": products}
                rows.append(try_row(title, _agreement_row, machine, exact, title))
    return rows


def _agreement_row(
    machine: BenchmarkMachine, exact: tuple[Tensor, Tensor, Tensor], options: MeasurementRow
) -> MeasurementRow:
    found, again = (_run_steps(machine, **options) for _ in range(2))
    names = "loss_error", "gradient_error", "centres_error"
    errors = dict(zip(names, map(_relative_error, found, exact), strict=True))
    return errors | {"same_bits": all(map(torch.equal, found, again))}


def _run_steps(machine: BenchmarkMachine, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses and the last gradient of five steps, and the total change of the centers."""
    classes = machine.scale_size(200_000)
    if machine.is_dry_run and options["kernels"] == "triton":
        options["kernels"] = "torch"
    head = PartialFC(
        classes,
        machine.width,
        MARGIN,
        config=HeadConfig(sample_rate=0.1, **options),
        optim=OPTIM,
        device=machine.device,
    )
    before = head.centers.tensors["centers"].clone().float()
    generator, losses = torch.Generator().manual_seed(0), []
    for number in range(5):
        embeddings = (
            torch.randn(machine.batch, machine.width, generator=generator).to(machine.device).requires_grad_()
        )
        step = head.prepare(torch.randint(classes, (machine.batch,), generator=generator), number)
        loss = head(embeddings, step)
        loss.backward()
        head.update(step, LR)
        losses.append(loss.detach())
    assert embeddings.grad is not None
    return torch.stack(losses), embeddings.grad, head.centers.tensors["centers"].float() - before


def _relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())
