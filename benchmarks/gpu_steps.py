"""Sections of benchmarks/gpu.py on full training steps and on many identities."""

import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import msgspec
import numpy as np
import torch
import torch.distributed as dist

from benchmarks.gpu_heads import make_step
from benchmarks.gpu_sections import BenchmarkMachine, try_row
from benchmarks.measurement import MeasurementRow
from benchmarks.textbook_head import MARGIN, OPTIM, BenchmarkCase
from partialfc.config import Config, DataConfig, HeadConfig, IResNetTiny, TrainConfig
from partialfc.data import recordio
from partialfc.data.loader import Batch, StepFlags
from partialfc.head import PartialFC
from partialfc.plan import PlannedRun
from partialfc.runtime import comm
from partialfc.training.loop import train_step
from partialfc.training.run import Run, build_run

CLASSES, IMAGES = 100_000, 512
NETWORKS = ("iresnet50", 256), ("iresnet50", 128), ("iresnet100", 128)  # with the images of a step


def benchmark_steps(machine: BenchmarkMachine) -> list[MeasurementRow]:
    """Benchmark thirty training steps with images on the GPU.

    Reports images per second, overhead over the backbone alone, and idle GPU time. Then twenty steps run
    twice, also with CUDA graphs, and must be bitwise identical.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="benchmark_gpu") as folder, single_rank(machine) as dist_ctx:
        noise_pack(Path(folder), machine.scale_size(CLASSES), 64 if machine.is_dry_run else IMAGES, 112)
        for network, batch in NETWORKS:
            for graphs in (False, True):
                config = step_config(machine, Path(folder), network, batch, backbone={"cuda_graphs": graphs})
                title = {"network": network, "batch": config.train.global_batch_size, "cuda_graphs": graphs}
                rows.append(try_row(title, _benchmark_training, machine, config, dist_ctx))
        for deterministic in (False, True):
            title = {"network": "iresnet50", "deterministic": deterministic}
            rows.append(try_row(title, _check_determinism, machine, Path(folder), dist_ctx, deterministic))
    return rows


def _benchmark_training(
    machine: BenchmarkMachine, config: Config, dist_ctx: comm.DistContext
) -> MeasurementRow:
    machine.peak_memory()
    run = build_run(config, dist_ctx)
    step = make_train_step(run)
    taken, on_host = machine.milliseconds(step, 30)
    alone, _ = machine.milliseconds(_backbone_alone(run), 15)
    return {
        "ms": taken, "host_ms": on_host, "images_per_second": 1000 * config.train.global_batch_size / taken,
        "backbone_ms": alone, "over_backbone": taken / alone, "idle": idle_fraction(machine, step), "waits": find_syncs(machine, step),
        "peak_bytes": machine.peak_memory(),
    }  # fmt: skip


def benchmark_many_identities(machine: BenchmarkMachine) -> list[MeasurementRow]:
    """Benchmark a head with as many identities as fit: bfloat16 rows without momentum, float32 rows with
    momentum.
    """
    rows = []
    for classes, options in (
        (1_000_000, {"centers_dtype": "bfloat16", "optim_state_dtype": "none"}),
        (100_000_000, {"centers_dtype": "bfloat16", "optim_state_dtype": "none"}),
        (30_000_000, {}),
    ):
        job = PlannedRun(
            _head_config(machine, options), machine.scale_size(classes), 1, device=machine.device.type
        )
        planned = sum(job.head_memory().values())
        row: MeasurementRow = {"ids": job.num_classes, **options, "planned_bytes": planned}
        if not machine.is_dry_run and planned > 0.97 * torch.cuda.mem_get_info(machine.device)[0]:
            rows.append(row | {"not run": "does not fit"})
            continue
        rows.append(try_row(row, _benchmark_head_steps, machine, job))
        torch.cuda.empty_cache()
    return rows


def noise_pack(folder: Path, classes: int, images: int, size: int) -> None:
    """Write a pack of noise with `classes` identities in the layout of im2rec."""
    generator = np.random.default_rng(0)
    with recordio.RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        for key, label in enumerate(generator.integers(classes, size=images).tolist()):
            pixels = generator.integers(0, 255, (size, size, 3), np.uint8)
            payload = cv2.imencode(".jpg", pixels)[1].tobytes()
            writer.write(key, recordio.Header(float(label), key), payload)
    (folder / "property").write_text(f"{classes},{size},{size}")


@contextmanager
def single_rank(machine: BenchmarkMachine) -> Iterator[comm.DistContext]:
    """Yield a process group of one rank."""
    dist.init_process_group(
        "gloo" if machine.is_dry_run else "nccl", store=dist.HashStore(), rank=0, world_size=1,
        device_id=None if machine.is_dry_run else machine.device,
    )  # fmt: skip
    try:
        yield comm.create_dist_context(machine.device)
    finally:
        dist.destroy_process_group()


def step_config(
    machine: BenchmarkMachine,
    folder: Path,
    network: str,
    batch: int,
    *,
    backbone: Mapping[str, Any] = MappingProxyType({}),
    **more: Any,
) -> Config:
    """Return the recipe of a training step; `backbone` are further settings of the network."""
    name = "iresnet_tiny" if machine.is_dry_run else network
    tree = {
        "data": {"path": str(folder), "num_workers": 0},
        "backbone": {"name": name, "embedding_size": machine.width, **backbone},
        "head": {"sample_rate": 0.1, "matmul_precision": "half"},
        "optim": {"name": "sgd", "precision": "bfloat16", "ema_decay": 0.999},
        "train": {"length": 100_000, "global_batch_size": 4 if machine.is_dry_run else batch},
        "device": machine.device.type, "output": str(folder / "output"),
    }  # fmt: skip
    return msgspec.convert(tree | more, Config)


def make_train_step(run: Run) -> Callable[[], None]:
    """Return a function that launches the run's next step and then prepares its successor, as in training."""
    batches = [_batch(run, number) for number in range(4)]
    ahead = [run.head.prepare(batches[0].labels, 0)]

    def step() -> None:
        train_step(run, batches[run.step % 4], ahead[0])
        run.step += 1
        ahead[0] = run.head.prepare(batches[run.step % 4].labels, run.step)

    return step


def _batch(run: Run, number: int) -> Batch:
    generator, size = torch.Generator().manual_seed(number), run.backbone.input_size
    images = torch.randint(
        255, (run.config.train.global_batch_size, size, size, 3), dtype=torch.uint8, generator=generator
    )
    labels = torch.randint(run.head.num_classes, (len(images),), generator=generator)
    return Batch(
        images.to(run.dist_ctx.device), labels, data_wait_seconds=0.0, num_replaced=0, flags=StepFlags()
    )


def _backbone_alone(run: Run) -> Callable[[], None]:
    size, batch = run.backbone.input_size, run.config.train.global_batch_size
    images = torch.randint(0, 255, (batch, size, size, 3), dtype=torch.uint8, device=run.dist_ctx.device)
    gradient = torch.randn(batch, run.config.backbone.embedding_size, device=run.dist_ctx.device)
    loss = torch.ones((), device=run.dist_ctx.device)

    def step() -> None:
        run.micro_batch_runner.forward(images, 0)
        run.micro_batch_runner.backward(images, 0, gradient)
        _, finite = run.optimizer.step(0.0, loss)
        if run.ema:
            run.ema.update(0, finite)

    return step


def find_syncs(machine: BenchmarkMachine, step: Callable[[], None]) -> str:
    """Return the host synchronizations of three steps, if any."""
    if machine.is_dry_run:
        return "not known"
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    except RuntimeError as error:
        ours = [it for it in traceback.extract_tb(error.__traceback__) if "/partialfc/" in it.filename]
        return (
            f"{str(error).splitlines()[0]} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
            if ours
            else str(error)
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "nothing"


def idle_fraction(machine: BenchmarkMachine, step: Callable[[], None]) -> float:
    """Return the fraction of five steps in which the GPU is idle."""
    busy, whole = machine.gpu_busy_time(step, 5)
    return 1 - busy / whole if whole else 0.0


def _check_determinism(
    machine: BenchmarkMachine, folder: Path, dist_ctx: comm.DistContext, deterministic: bool
) -> MeasurementRow:
    found, times = [], []
    for graphs in (False, False, True):
        config = step_config(
            machine, folder, "iresnet50", 128, backbone={"cuda_graphs": graphs}, deterministic=deterministic
        )
        run = build_run(config, dist_ctx)
        step = make_train_step(run)
        for _ in range(2 if machine.is_dry_run else 20):
            step()
        tensors = *run.backbone.state_dict().values(), *run.head.centers.tensors.values()
        found.append([it.detach().clone() for it in tensors])
        times.append(machine.milliseconds(step, 10)[0])
    torch.use_deterministic_algorithms(False)
    same, of_graphs = (all(map(torch.equal, found[0], it)) for it in found[1:])
    return {
        "batch": config.train.global_batch_size, "same_bits": same, "same_bits_by_graphs": of_graphs, "ms": times[1],
        "ms_by_graphs": times[2],
    }  # fmt: skip


def _head_config(machine: BenchmarkMachine, options: dict[str, str]) -> Config:
    head = msgspec.convert({"sample_rate": 0.01, "matmul_precision": "half", **options}, HeadConfig)
    return Config(
        data=DataConfig(path=""), train=TrainConfig(length=1, global_batch_size=machine.batch), backbone=IResNetTiny(embedding_size=machine.width),
        head=head, loss=MARGIN, optim=OPTIM,
    )  # fmt: skip


def _benchmark_head_steps(machine: BenchmarkMachine, job: PlannedRun) -> MeasurementRow:
    machine.peak_memory()
    head = PartialFC(
        job.num_classes, machine.width, MARGIN, config=job.config.head, optim=OPTIM, device=machine.device
    )
    case = BenchmarkCase(
        job.num_classes,
        machine.batch,
        machine.width,
        1,
        50,
        1,
        machine.device.type,
        job.config.head,
        True,
        False,
    )
    taken, on_host = machine.milliseconds(make_step(machine, head, case), 50)
    return {"ms": taken, "host_ms": on_host, "peak_bytes": machine.peak_memory()}
