"""Whether a recipe fits, before it is run: memory of a rank, bytes sent, and the head's time at best."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from partialfc.config import Config
from partialfc.data.dataset import read_property
from partialfc.errors import InputError
from partialfc.plan.gpus import GPUS, GPUS_PER_NODE, GPUSpec
from partialfc.plan.planned_run import BytesByPurpose, PlannedRun

__all__ = ["GPUS", "PlannedRun", "format_plan", "max_identities", "num_identities"]

_MAX_IDENTITIES = 1 << 40  # identities; more than anybody has


def num_identities(config: Config) -> int:
    """How many the recipe's pack has, or the built-in data; InputError where neither is there."""
    path = Path(config.data.path, "property")
    if (known := read_property(path)) is not None:
        return known.num_classes
    if config.data.synthetic is not None:
        return config.data.synthetic.identities
    raise InputError(f"{path}: not there, so the number of identities is not known; wanted --identities N")


def max_identities(planned_run: PlannedRun, memory: int) -> int:
    """The largest number of identities whose run fits `memory` bytes on the device of a rank; 0: none does.

    Memory grows with identities but for one fall, where the logits no longer fit their budget and are not kept.
    """
    backbone = sum(planned_run.backbone_memory().values())

    def fits(identities: int) -> bool:
        head = replace(planned_run, num_classes=identities).head_memory()
        return backbone + sum(head.values()) <= memory

    kept = _largest_true(
        lambda identities: replace(planned_run, num_classes=identities).keeps_logits, 0, _MAX_IDENTITIES
    )
    beyond = _largest_true(fits, kept + 1, _MAX_IDENTITIES) if kept < _MAX_IDENTITIES else kept
    return beyond if beyond > kept else _largest_true(fits, 0, kept)


def _largest_true(predicate: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number of low to high for which `predicate`, which does not hold again after it failed; else low - 1,
    and 0 at the least.
    """
    low -= 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if predicate(middle) else (low, middle - 1)
    return max(0, low)


def estimate_head_seconds(planned_run: PlannedRun, device: GPUSpec) -> dict[str, float]:
    """Seconds of a step's head at best, by what they go to: none can be faster, and they may overlap."""
    link = (
        device.intra_node_bandwidth
        if planned_run.world_size <= GPUS_PER_NODE
        else device.inter_node_bandwidth
    )
    return {
        "arithmetic": planned_run.head_flops() / getattr(device, planned_run.matmul_precision),
        "memory traffic": planned_run.head_memory_traffic() / device.memory_bandwidth,
        "network": sum(planned_run.head_traffic().values()) / link,
    }


def format_plan(planned_run: PlannedRun, gpu: str, gpu_memory: int | None) -> str:
    """For people. gpu: a name of DEVICES; memory: bytes of a GPU, where another than this one's."""
    device = GPUS[gpu]
    batch, available = planned_run.config.train.global_batch_size, gpu_memory or device.memory
    lines = [
        f"{planned_run.num_classes:,} identities on {planned_run.world_size} ranks: {planned_run.classes_per_rank:,} on a rank, {planned_run.active_classes_per_rank:,} of them "
        f"active in a step; batch {batch}, {batch // planned_run.world_size} images on a rank",
        *_format_table("memory of a rank, MiB", planned_run.head_memory() | planned_run.backbone_memory()),
    ]
    on_host = planned_run.host_memory() | planned_run.snapshot_memory()
    lines += _format_table("beside it, on the host, MiB a rank", on_host)
    lines += _format_table(
        "sent by a rank in a step, MiB", planned_run.head_traffic() | planned_run.backbone_traffic()
    )
    lines.append(f"the head's step on {gpu} at best, ms (no part can be faster; they may overlap)")
    lines += [
        f"  {name:34}{1000 * seconds:12,.2f}"
        for name, seconds in estimate_head_seconds(planned_run, device).items()
    ]
    lines.append("not counted: the CUDA context and the workspace of cuDNN")
    lines.append(
        f"{max_identities(planned_run, available):,} identities fit {available / 2**30:.0f} GiB on each of {planned_run.world_size} ranks"
    )
    return "\n".join(lines)


def _format_table(title: str, sizes: BytesByPurpose) -> list[str]:
    rows = [*sizes.items(), ("together", sum(sizes.values()))]
    return [title, *(f"  {name:34}{size / 2**20:12,.1f}" for name, size in rows)]
