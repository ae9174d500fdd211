"""Section of benchmarks/gpu.py on where the time of a training step goes: by kind of kernel, for each way to launch them."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_sections import BenchmarkMachine, try_row
from benchmarks.gpu_steps import make_train_step, noise_pack, single_rank, step_config
from benchmarks.measurement import MeasurementRow
from partialfc.runtime.comm import DistContext
from partialfc.training.run import build_run

CLASSES, IMAGES, STEPS = 100_000, 512, 3
CASES = ("iresnet50", 128), ("iresnet50", 256), ("iresnet100", 128), ("iresnet100", 256)
MODES: dict[str, dict[str, bool]] = {
    "eager": {},
    "graphs": {"cuda_graphs": True},
    "compiled": {"compile": True},
}  # settings of the backbone
# The first pattern that a name contains, in lower case: names of CUDA kernels, and of operations of a CPU.
KINDS = {
    "BatchNorm": r"batch_?norm|bn_fw|bn_bw",
    "PReLU": r"prelu",
    "convolution": r"conv|cudnn|fprop|dgrad|wgrad|winograd|implicit",
    "optimizer": r"multi_tensor|foreach|fused_sgd|fused_adam",
    "head": r"normalize_centers|exp_logits|softmax_(totals|gradient)|step_centers|target_centers|sample_rows|embedding_gradients|target_gradients",
    "product": r"gemm|cutlass|nvjet|xmma|::addmm|::mm",
    "copy": r"memcpy|memset|copy|::cat|catarray|fill",
    "reduction": r"reduce|::sum|norm",
}


def benchmark_kernels(machine: BenchmarkMachine) -> list[MeasurementRow]:
    """Measure the milliseconds per step of each kind of kernel, eagerly and with CUDA graphs."""
    return _benchmark(machine, [(*case, mode) for case in CASES for mode in ("eager", "graphs")])


def benchmark_compiled(machine: BenchmarkMachine) -> list[MeasurementRow]:
    """Measure the same of a compiled backbone, whose compilation takes most of the time."""
    return _benchmark(machine, [(*CASES[0], "compiled")])


def _benchmark(machine: BenchmarkMachine, cases: list[tuple[str, int, str]]) -> list[MeasurementRow]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="benchmark_gpu") as folder, single_rank(machine) as dist_ctx:
        noise_pack(Path(folder), machine.scale_size(CLASSES), 64 if machine.is_dry_run else IMAGES, 112)
        for network, images, mode in cases:
            title = {"network": network, "images": images, "mode": mode}
            rows.append(try_row(title, _profile_step, machine, Path(folder), dist_ctx, network, images, mode))
    return rows


def classify(name: str) -> str:
    """Return the kind of a kernel or operation."""
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower()))
    return next(found, "other")


def _profile_step(
    machine: BenchmarkMachine, folder: Path, dist_ctx: DistContext, network: str, images: int, mode: str
) -> MeasurementRow:
    settings = {} if machine.is_dry_run else MODES[mode]
    config = step_config(machine, folder, network, images, backbone=settings)
    step = make_train_step(build_run(config, dist_ctx))
    wall, _ = machine.milliseconds(step, 10)
    kinds = kernel_times(machine, step, STEPS)
    return {"wall_ms": wall, "gpu_ms": sum(kinds.values())} | {
        kind: kinds[kind] for kind in (*KINDS, "other")
    }


def kernel_times(machine: BenchmarkMachine, function: Callable[[], object], count: int) -> Counter[str]:
    """Return the milliseconds of each kind of kernel per call; of each kind of operation without a GPU."""
    activity = ProfilerActivity.CPU if machine.is_dry_run else ProfilerActivity.CUDA
    with profile(activities=[activity]) as traced:
        for _ in range(count):
            function()
        machine.wait()
    kinds = Counter[str]()
    wanted = torch.autograd.DeviceType.CPU if machine.is_dry_run else torch.autograd.DeviceType.CUDA
    for event in traced.events():
        if event.device_type == wanted:
            own = event.self_cpu_time_total if machine.is_dry_run else event.time_range.elapsed_us()
            kinds[classify(event.name)] += own / 1000 / count
    return kinds
