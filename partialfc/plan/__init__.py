"""Resource estimates of a recipe: memory and traffic per rank, and lower bounds of the head's time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from partialfc.config import Config
from partialfc.data.dataset import read_property
from partialfc.errors import InputError
from partialfc.plan.planned_run import BytesByPurpose, PlannedRun
from partialfc.runtime.gpus import GPUS, GPUS_PER_NODE, GPUSpec

__all__ = ["GPUS", "PlannedRun", "format_plan", "max_identities", "num_identities"]

_MAX_IDENTITIES = 1 << 40  # upper bound of the search


def num_identities(config: Config) -> int:
    """Return the number of identities of the recipe's pack or built-in data.

    Raises:
        InputError: If neither exists.
    """
    path = Path(config.data.path, "property")
    if (known := read_property(path)) is not None:
        return known.num_classes
    if config.data.synthetic is not None:
        return config.data.synthetic.identities
    raise InputError(f"{path}: not found; pass --identities N")


def max_identities(planned_run: PlannedRun, memory: int) -> int:
    """Return the largest number of identities for which a run fits `memory` bytes per rank; 0 if none.

    Memory grows with the number of identities, except for one drop: when the logits no longer fit their
    budget and are recomputed.
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
    """Return the largest number in [low, high] that satisfies a monotone predicate; max(low - 1, 0) if none."""
    low -= 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if predicate(middle) else (low, middle - 1)
    return max(0, low)


def estimate_head_seconds(planned_run: PlannedRun, device: GPUSpec) -> dict[str, float]:
    """Return lower bounds of the head's seconds per step, by resource; they may overlap."""
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
    """Return the plan as text.

    Args:
        planned_run: Run to report on.
        gpu: Name in GPUS.
        gpu_memory: Bytes of a GPU; None: as in GPUS.
    """
    device = GPUS[gpu]
    batch, available = planned_run.config.train.global_batch_size, gpu_memory or device.memory
    lines = [
        f"{planned_run.num_classes:,} identities on {planned_run.world_size} ranks: {planned_run.classes_per_rank:,} on a rank, {planned_run.active_classes_per_rank:,} of them "
        f"active in a step; batch {batch}, {batch // planned_run.world_size} images per rank",
        *_format_table("memory per rank, MiB", planned_run.head_memory() | planned_run.backbone_memory()),
    ]
    on_host = planned_run.host_memory() | planned_run.snapshot_memory()
    lines += _format_table("host memory per rank, MiB", on_host)
    lines += _format_table(
        "sent per rank and step, MiB", planned_run.head_traffic() | planned_run.backbone_traffic()
    )
    lines.append(f"lower bounds for the head's step on {gpu}, ms (may overlap)")
    lines += [
        f"  {name:34}{1000 * seconds:12,.2f}"
        for name, seconds in estimate_head_seconds(planned_run, device).items()
    ]
    lines.append("excluded: CUDA context and cuDNN workspace")
    lines.append(
        f"largest run in {available / 2**30:.0f} GiB per rank on {planned_run.world_size} ranks: "
        f"{max_identities(planned_run, available):,} identities"
    )
    return "\n".join(lines)


def _format_table(title: str, sizes: BytesByPurpose) -> list[str]:
    rows = [*sizes.items(), ("total", sum(sizes.values()))]
    return [title, *(f"  {name:34}{size / 2**20:12,.1f}" for name, size in rows)]
