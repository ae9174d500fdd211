"""What tools/benchmark_gpu.py measures, a section each: functions that give rows. Each runs in a process of its own.

Without a GPU every section runs on the CPU at sizes that mean nothing: a rehearsal, so that nothing is found out on the GPU.
"""

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import torch
import torch.distributed as dist
from textbook_head import MARGIN, OPTIM, RATE, Case, TextbookHead
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from partialfc.config import Config, DataConfig, HeadConfig, IResNetTiny, TrainConfig
from partialfc.head import PartialFC
from partialfc.plan import Job
from partialfc.runtime import comm

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
    """Bytes a second of a copy, and operations a second of products of the head's shapes."""
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
    return rows


def agreement(here: Machine) -> list[Row]:
    """Kernels beside the functions of torch, products beside float32's, and two runs of the same steps: bits."""
    rows = []
    settings: list[Row] = [
        {},
        {"unsampled": "decay"},
        {"centers": "bfloat16", "moments": "bfloat16"},
        {"logits_budget": 0},
    ]
    for options in settings:
        exact = _stepped(here, kernels="torch", products="float32", **options)
        for kernels in ("torch", "triton"):
            for products in ("float32", "tf32", "half"):
                found, again = (
                    _stepped(here, kernels=kernels, products=products, **options) for _ in range(2)
                )
                rows.append(
                    {
                        **options, "kernels": kernels, "products": products,
                        "loss_error": _apart(found[0], exact[0]), "gradient_error": _apart(found[1], exact[1]),
                        "centres_error": _apart(found[2], exact[2]),
                        "same_bits": all(map(torch.equal, found, again)),
                    }
                )  # fmt: skip
    return rows


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


CASES = {
    "1M ids, r 0.1, 1 rank": (1_000_000, 0.1, 1),
    "1M ids, r 0.1, 8 ranks": (1_000_000, 0.1, 8),
    "10M ids, r 0.1, 8 ranks": (10_000_000, 0.1, 8),
    "360k ids, r 1, 8 ranks": (360_000, 1.0, 8),
}


def heads(here: Machine) -> list[Row]:
    """A step of the head on one rank, of one or of eight whose sends are made up; ours with and without kernels, a plainly
    written one, and insightface's where it is at hand.
    """
    rows = []
    for name, (classes, rate, world_size) in CASES.items():
        case = Case(
            here.sized(classes), batch=here.batch // world_size, width=here.width, world_size=world_size, steps=50, threads=1,
            device=here.device.type, head=HeadConfig(sample_rate=rate), one_rank=True, textbook=False,
        )  # fmt: skip
        with _ranks(here, world_size):
            for kernels in ("triton", "torch") if not here.rehearsed else ("torch",):
                for products in ("half", "tf32", "float32"):
                    config = msgspec.structs.replace(case.head, kernels=kernels, products=products)
                    rows.append({"case": name} | _ours(here, replace(case, head=config)))
            rows.append({"case": name, "head": "textbook"} | _other(here, case, TextbookHead(case, 0)))
            if here.insightface is not None:
                for half in (True, False):
                    theirs = _Insightface(case, here.insightface, half=half)
                    rows.append(
                        {"case": name, "head": "insightface" + ", fp16" * half} | _other(here, case, theirs)
                    )
    return rows


def _ranks(here: Machine, world_size: int) -> AbstractContextManager[object]:
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    made_up = torch.nn.functional.normalize(torch.randn(here.batch, here.width, device=here.device))

    def gather(rows: Tensor, local: Tensor, **_: Any) -> None:
        rows.copy_(made_up)
        rows[: len(local)] = local

    return mock.patch.object(comm, "_all_gather", gather) if world_size > 1 else nullcontext()


def _ours(here: Machine, case: Case) -> Row:
    here.peak()
    head = PartialFC(case.num_classes, here.width, MARGIN, config=case.head, optim=OPTIM, device=here.device)
    step = stepping(here, head, case)
    taken, on_host = here.milliseconds(step, 50)
    config = Config(
        data=DataConfig(path=""), train=TrainConfig(length=1, batch=here.batch), backbone=IResNetTiny(embedding=here.width),
        head=case.head, margin=MARGIN, optim=OPTIM,
    )  # fmt: skip
    job = Job(config, case.num_classes, case.world_size, device=here.device.type)
    return {
        "head": "ours", "kernels": case.head.kernels, "products": case.head.products, "ms": taken, "host_ms": on_host,
        "launches": launches_of(here, step), "peak_bytes": here.peak(), "planned_bytes": sum(job.head_memory().values()),
        "teraflops": job.operations() / taken / 1e9, "gigabytes_per_second": job.traffic() / taken / 1e6,
    }  # fmt: skip


def stepping(here: Machine, head: PartialFC, case: Case) -> Callable[[], None]:
    """The next step of a head, whose successor is prepared once it is launched, as in training."""
    batches = [case.embeddings(number)[: case.batch].to(here.device) for number in range(4)]
    labels = [case.labels(number) for number in range(4)]
    ahead = [head.prepare(labels[0], 0)]

    def step() -> None:
        now = ahead[0]
        embeddings = batches[now.number % 4].clone().requires_grad_()
        head(embeddings, now).backward()
        head.update(now, RATE)
        ahead[0] = head.prepare(labels[(now.number + 1) % 4], now.number + 1)

    return step


def launches_of(here: Machine, function: Callable[[], object]) -> int:
    """How many kernels and copies a call starts."""
    if here.rehearsed:
        return 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        here.wait()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


class _Insightface:
    """PartialFC_V2 of insightface's recognition/arcface_torch, from a folder of its own, as its training script steps it."""

    def __init__(self, case: Case, folder: Path, *, half: bool) -> None:
        sys.path.insert(0, str(folder))
        from losses import CombinedMarginLoss  # type: ignore[import-not-found]
        from partial_fc_v2 import PartialFC_V2  # type: ignore[import-not-found]

        loss = CombinedMarginLoss(64, 1.0, 0.0, MARGIN.margin)
        self._head = PartialFC_V2(loss, case.width, case.num_classes, case.head.sample_rate, half)
        self._head.train().to(case.device)
        self._optimizer = torch.optim.SGD(
            self._head.parameters(), RATE, momentum=OPTIM.momentum, weight_decay=5e-4
        )
        self._batch = case.batch

    def step(self, embeddings: Tensor, labels: Tensor) -> None:
        local = labels[: self._batch].to(embeddings.device)
        self._head(embeddings, local).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def _other(here: Machine, case: Case, head: "TextbookHead | _Insightface") -> Row:
    batches = [case.embeddings(number)[: case.batch].to(here.device) for number in range(4)]
    labels = [case.labels(number) for number in range(4)]
    times = []
    for number in range(2 if here.rehearsed else 6):
        embeddings = batches[number % 4].clone().requires_grad_()
        here.wait()
        began = time.perf_counter()
        head.step(embeddings, labels[number % 4])
        here.wait()
        times.append(1000 * (time.perf_counter() - began))
    return {"ms": statistics.median(times[1:]), "peak_bytes": here.peak()}
