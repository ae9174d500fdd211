"""What tools/benchmark_gpu.py measures of the machine and of what is right on it, a section each: functions that give
rows. Each runs in a process of its own.

Without a GPU every section runs on the CPU at sizes that mean nothing: a rehearsal, so that nothing is found out on the GPU.
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
from textbook_head import MARGIN, OPTIM, RATE
from torch import Tensor

from partialfc.config import HeadConfig
from partialfc.head import PartialFC

Row = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """Where the sections run."""

    device: torch.device
    insightface: Path | None  # the folder with its partial_fc_v2.py and losses.py

    @property
    def rehearsed(self) -> bool:
        """Whether there is no GPU."""
        return self.device.type == "cpu"

    @property
    def width(self) -> int:
        """D, of the embeddings."""
        return 32 if self.rehearsed else 512

    @property
    def batch(self) -> int:
        """B, images of a step of the head."""
        return 64 if self.rehearsed else 1024

    def sized(self, size: int) -> int:
        """A size as it is named, or one for a rehearsal."""
        return max(2048, size // 4096) if self.rehearsed else size

    def milliseconds(self, function: Callable[[], object], count: int) -> tuple[float, float]:
        """Of a call, among `count` that follow each other: until the device was through, and until the host was."""
        for _ in range(3):
            function()
        self.wait()
        count = 2 if self.rehearsed else count
        began = time.perf_counter()
        for _ in range(count):
            function()
        on_host = time.perf_counter() - began
        self.wait()
        return 1000 * (time.perf_counter() - began) / count, 1000 * on_host / count

    def busy(self, function: Callable[[], object], count: int) -> tuple[float, float]:
        """Milliseconds in which a kernel or a copy runs while a function is called `count` times, and from the first of
        them to the end of the last.
        """
        if self.rehearsed:
            return 0.0, 0.0
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(count):
                function()
            self.wait()
        spans = sorted((it.time_range.start, it.time_range.end) for it in on_gpu(profile))
        busy, end = 0.0, spans[0][0]
        for begin, until in spans:
            busy += max(0.0, until - max(begin, end))
            end = max(end, until)
        return busy / 1000, (end - spans[0][0]) / 1000

    def wait(self) -> None:
        """Return when the device is through."""
        if not self.rehearsed:
            torch.cuda.synchronize(self.device)

    def peak(self) -> int:
        """Bytes that were allocated at most since the last call."""
        if self.rehearsed:
            return 0
        most = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return most


def on_gpu(profile: torch.profiler.profile) -> list[Any]:
    """Of a profile, what ran on a GPU."""
    return [it for it in profile.events() if it.device_type == torch.autograd.DeviceType.CUDA]


def tried(title: Row, function: Callable[..., Row], *arguments: Any) -> Row:
    """A row; where it cannot be had, for whatever reason, the row says so, and the others are measured."""
    try:
        return title | function(*arguments)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return title | {"failed": f"{type(error).__name__}: {lines[0]}"}


def machine(here: Machine) -> list[Row]:
    """What it is."""
    row: Row = {"torch": torch.__version__, "python": sys.version.split()[0], "cores": os.cpu_count()}
    row["triton"] = importlib.util.find_spec("triton") is not None
    if not here.rehearsed:
        properties = torch.cuda.get_device_properties(here.device)
        row |= {"gpu": properties.name, "bytes": properties.total_memory, "cuda": torch.version.cuda}
        row["capability"] = f"{properties.major}.{properties.minor}"
    return [row]


def ceilings(here: Machine) -> list[Row]:
    """Bytes a second of a copy, operations a second of products of the head's shapes, and what a launch takes the host."""
    size = here.sized(1 << 28)
    source, target = (torch.ones(size, device=here.device) for _ in range(2))
    taken, _ = here.milliseconds(lambda: target.copy_(source), 20)
    rows: list[Row] = [{"what": "copy", "gigabytes_per_second": 8 * size / taken / 1e6}]
    count = here.sized(100_000)
    matmul = torch.backends.cuda.matmul
    for name, kind in (("ieee", torch.float32), ("tf32", torch.float32), ("half", torch.float16), ("bfloat16", torch.bfloat16)):  # fmt: skip
        left = torch.randn(count, here.width, device=here.device).to(kind)
        right = torch.randn(here.width, here.batch, device=here.device).to(kind)
        before = matmul.fp32_precision
        matmul.fp32_precision = name if kind == torch.float32 else before
        taken, _ = here.milliseconds(partial(torch.mm, left, right), 20)
        matmul.fp32_precision = before
        rows.append(
            {"what": f"product, {name}", "teraflops": 2 * count * here.width * here.batch / taken / 1e9}
        )
    small = torch.ones(1024, device=here.device)
    _, on_host = here.milliseconds(lambda: small.add_(1), 500)
    return [*rows, {"what": "launch", "microseconds": 1000 * on_host}]


def agreement(here: Machine) -> list[Row]:
    """Kernels beside the functions of torch, products beside float32's, and two runs of the same steps: bits."""
    rows = []
    settings: list[Row] = [
        {},
        {"unsampled": "decay"},
        {"centers_dtype": "bfloat16", "optim_state_dtype": "bfloat16"},
        {"logits_budget": 0},
    ]
    for options in settings:
        exact = _stepped(here, kernels="torch", matmul_precision="float32", **options)
        for kernels in ("torch", "triton"):
            for products in ("float32", "tf32", "half"):
                title = {**options, "kernels": kernels, "matmul_precision": products}
                rows.append(tried(title, _agreement, here, exact, title))
    return rows


def _agreement(here: Machine, exact: tuple[Tensor, Tensor, Tensor], options: Row) -> Row:
    found, again = (_stepped(here, **options) for _ in range(2))
    names = "loss_error", "gradient_error", "centres_error"
    errors = dict(zip(names, map(_apart, found, exact), strict=True))
    return errors | {"same_bits": all(map(torch.equal, found, again))}


def _stepped(here: Machine, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and the last gradient of five steps, and how far the centres have moved."""
    classes = here.sized(200_000)
    if here.rehearsed and options["kernels"] == "triton":
        options["kernels"] = "torch"
    head = PartialFC(
        classes,
        here.width,
        MARGIN,
        config=HeadConfig(sample_rate=0.1, **options),
        optim=OPTIM,
        device=here.device,
    )
    before = head.centers.tensors["centers"].clone().float()
    generator, losses = torch.Generator().manual_seed(0), []
    for number in range(5):
        embeddings = torch.randn(here.batch, here.width, generator=generator).to(here.device).requires_grad_()
        step = head.prepare(torch.randint(classes, (here.batch,), generator=generator), number)
        loss = head(embeddings, step)
        loss.backward()
        head.update(step, RATE)
        losses.append(loss.detach())
    assert embeddings.grad is not None
    return torch.stack(losses), embeddings.grad, head.centers.tensors["centers"].float() - before


def _apart(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())
