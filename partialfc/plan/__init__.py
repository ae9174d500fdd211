"""Whether a recipe fits, before it is run: memory of a rank, bytes sent, and the head's time at best."""

from dataclasses import replace
from pathlib import Path

from partialfc.config import Config
from partialfc.data.dataset import read_property
from partialfc.plan.devices import DEVICES, MACHINE, Device
from partialfc.plan.job import Bytes, Job

__all__ = ["DEVICES", "Job", "identities_of", "largest", "report"]

_MOST = 1 << 40  # identities; more than anybody has


def identities_of(config: Config) -> int:
    """Of the recipe's pack, or of the built-in data; ValueError where neither is there."""
    path = Path(config.data.path, "property")
    if (known := read_property(path)) is not None:
        return known.num_classes
    if config.data.synthetic is not None:
        return config.data.synthetic.identities
    raise ValueError(f"{path}: not there, so the number of identities is not known; wanted --identities N")


def largest(job: Job, memory: int) -> int:
    """The largest number of identities whose run fits `memory` bytes on the device of a rank; 0: none does."""
    backbone = sum(job.backbone_memory().values())
    low, high = 0, _MOST
    while low < high:
        middle = (low + high + 1) // 2
        needed = backbone + sum(replace(job, num_classes=middle).head_memory().values())
        low, high = (middle, high) if needed <= memory else (low, middle - 1)
    return low


def head_seconds(job: Job, device: Device) -> dict[str, float]:
    """Of a step's head at best: none of the three can be faster, and they may overlap."""
    head = sum(size for name, size in job.sent().items() if not name.startswith("backbone"))
    return {
        "arithmetic": job.operations() / getattr(device, job.config.head.products),
        "memory traffic": job.traffic() / device.traffic,
        "network": head / (device.near if job.ranks <= MACHINE else device.far),
    }


def report(job: Job, gpu: str, memory: int | None) -> str:
    """For people. gpu: a name of DEVICES; memory: bytes of a GPU, where another than this one's."""
    device = DEVICES[gpu]
    batch, available = job.config.train.batch, memory or device.memory
    lines = [
        f"{job.num_classes:,} identities on {job.ranks} ranks: {job.owned:,} on a rank, {job.sampled:,} of them at "
        f"work in a step; batch {batch}, {batch // job.ranks} images on a rank",
        *_table("memory of a rank, MiB", job.head_memory() | job.backbone_memory()),
    ]
    if on_host := job.host_memory():
        lines += _table("beside it, on the host, MiB a rank", on_host)
    lines += _table("sent by a rank in a step, MiB", job.sent())
    lines.append(f"the head's step on {gpu} at best, ms (no part can be faster; they may overlap)")
    lines += [f"  {name:34}{1000 * seconds:12,.2f}" for name, seconds in head_seconds(job, device).items()]
    lines.append(
        f"{largest(job, available):,} identities fit {available / 2**30:.0f} GiB on each of {job.ranks} ranks"
    )
    return "\n".join(lines)


def _table(title: str, parts: Bytes) -> list[str]:
    rows = [*parts.items(), ("together", sum(parts.values()))]
    return [title, *(f"  {name:34}{size / 2**20:12,.1f}" for name, size in rows)]
