"""Whether a recipe fits, before it is run: memory of a rank, bytes sent, and the head's time at best."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from partialfc.config import Config
from partialfc.data.dataset import read_property
from partialfc.errors import InputError
from partialfc.plan.gpus import DEVICES, MACHINE, Device
from partialfc.plan.planned_run import Bytes, Job

__all__ = ["DEVICES", "Job", "identities_of", "largest", "report"]

_MOST = 1 << 40  # identities; more than anybody has


def identities_of(config: Config) -> int:
    """How many the recipe's pack has, or the built-in data; InputError where neither is there."""
    path = Path(config.data.path, "property")
    if (known := read_property(path)) is not None:
        return known.num_classes
    if config.data.synthetic is not None:
        return config.data.synthetic.identities
    raise InputError(f"{path}: not there, so the number of identities is not known; wanted --identities N")


def largest(job: Job, memory: int) -> int:
    """The largest number of identities whose run fits `memory` bytes on the device of a rank; 0: none does.

    Memory grows with identities but for one fall, where the logits no longer fit their budget and are not kept.
    """
    backbone = sum(job.backbone_memory().values())

    def fits(identities: int) -> bool:
        head = replace(job, num_classes=identities).head_memory()
        return backbone + sum(head.values()) <= memory

    kept = _last(lambda identities: replace(job, num_classes=identities).keeps_logits, 0, _MOST)
    beyond = _last(fits, kept + 1, _MOST) if kept < _MOST else kept
    return beyond if beyond > kept else _last(fits, 0, kept)


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number of low to high for which `holds`, which does not hold again after it failed; else low - 1,
    and 0 at the least.
    """
    low -= 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return max(0, low)


def head_seconds(job: Job, device: Device) -> dict[str, float]:
    """Seconds of a step's head at best, by what they go to: none can be faster, and they may overlap."""
    link = device.near if job.ranks <= MACHINE else device.far
    return {
        "arithmetic": job.operations() / getattr(device, job.products),
        "memory traffic": job.traffic() / device.traffic,
        "network": sum(job.sent_by_head().values()) / link,
    }


def report(job: Job, gpu: str, memory: int | None) -> str:
    """For people. gpu: a name of DEVICES; memory: bytes of a GPU, where another than this one's."""
    device = DEVICES[gpu]
    batch, available = job.config.train.global_batch_size, memory or device.memory
    lines = [
        f"{job.num_classes:,} identities on {job.ranks} ranks: {job.owned:,} on a rank, {job.sampled:,} of them "
        f"active in a step; batch {batch}, {batch // job.ranks} images on a rank",
        *_table("memory of a rank, MiB", job.head_memory() | job.backbone_memory()),
    ]
    on_host = job.host_memory() | job.snapshot_memory()
    lines += _table("beside it, on the host, MiB a rank", on_host)
    lines += _table("sent by a rank in a step, MiB", job.sent_by_head() | job.sent_by_backbone())
    lines.append(f"the head's step on {gpu} at best, ms (no part can be faster; they may overlap)")
    lines += [f"  {name:34}{1000 * seconds:12,.2f}" for name, seconds in head_seconds(job, device).items()]
    lines.append("not counted: the CUDA context and the workspace of cuDNN")
    lines.append(
        f"{largest(job, available):,} identities fit {available / 2**30:.0f} GiB on each of {job.ranks} ranks"
    )
    return "\n".join(lines)


def _table(title: str, parts: Bytes) -> list[str]:
    rows = [*parts.items(), ("together", sum(parts.values()))]
    return [title, *(f"  {name:34}{size / 2**20:12,.1f}" for name, size in rows)]
