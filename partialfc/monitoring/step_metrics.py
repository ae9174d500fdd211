"""The numbers of some steps: what one brings, and the line that a few of them make."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor

from partialfc.monitoring.diagnostics import StepDiagnostics
from partialfc.monitoring.metrics_file import DAMAGED, MetricsRecord
from partialfc.runtime.host_copy import HostCopy

_DAMAGED = {"unreadable": "unreadable records", "corrupt": "records with corrupt JPEG data"}
_NAMED = 8  # keys in a line of the log


@dataclass(frozen=True)
class StepMetrics:
    """What one step brings; the tensors are scalars on the device, the same on every rank."""

    loss: Tensor
    grad_norm: Tensor  # of the backbone, before clipping
    is_finite: Tensor  # bool: whether the step was taken
    lr: float  # the backbone's learning rate
    data_wait_seconds: float  # seconds for data
    num_replaced: int  # images that could not be read
    diagnostics: StepDiagnostics | None = None  # where the step was looked at more closely
    # those that change as training goes on, by their keys
    scheduled_values: Mapping[str, float] = field(default_factory=dict)
    unreadable: tuple[int, ...] = ()  # keys of records that could not be read, not named before
    corrupt: tuple[int, ...] = ()  # those of which the decoder warned


@dataclass(frozen=True)
class RunProgress:
    """How far a run goes, and how far it has come."""

    start_step: int  # the step it goes on from
    total_steps: int  # steps
    steps_per_epoch: int
    global_batch_size: int  # images a step, over all ranks
    elapsed_seconds: float  # that the steps before `start_step` took


class MetricsWindow:
    """Some steps, up to number `step`, whose numbers are on their way to the host.

    health: what else is to be read beside them, [h] on the device.
    """

    def __init__(self, step: int, steps: Sequence[StepMetrics], health: Tensor) -> None:
        self.step, self.steps = step, steps
        values = torch.stack([torch.stack([it.loss, it.grad_norm, it.is_finite.float()]) for it in steps])
        self._reading = HostCopy(torch.cat([values.double().flatten(), health.double()]))

    def read(self) -> tuple[list[list[float]], list[float]]:
        """Loss, norm, and whether it was taken, of each step, by what they are; and the health. Waits for these alone."""
        numbers = self._reading.wait()
        count = 3 * len(self.steps)
        columns: list[list[float]] = numbers[:count].view(-1, 3).T.tolist()
        return columns, numbers[count:].tolist()


def build_record(
    step: int, steps: Sequence[StepMetrics], values: Sequence[Sequence[float]], progress: RunProgress
) -> MetricsRecord:
    """The newest `steps`, up to number `step`, without what takes a clock. columns: from their Window."""
    losses, norms, taken = values
    beside: MetricsRecord = (
        {"settings": dict(steps[-1].scheduled_values)} if steps[-1].scheduled_values else {}
    )
    for name in DAMAGED:
        if keys := [key for it in steps for key in getattr(it, name)]:
            beside[name] = keys
    return beside | {
        "step": step,
        "epoch": step / progress.steps_per_epoch,
        "loss": sum(losses) / len(steps),
        "rate": steps[-1].lr,
        "gradient_norm": norms[-1],
        "skipped": len(steps) - int(sum(taken)),
        "replaced": sum(it.num_replaced for it in steps),
        "longest_data_wait": max(it.data_wait_seconds for it in steps),  # seconds, of one step
    }


def throughput_fields(
    steps: Sequence[StepMetrics], progress: RunProgress, seconds: float, section_seconds: Mapping[str, float]
) -> MetricsRecord:
    """What took `seconds`, of which the sections of the steps took those `section_seconds`."""
    parts = {**section_seconds, "other": max(0.0, seconds - sum(section_seconds.values()))}
    return {
        "images_per_second": len(steps) * progress.global_batch_size / seconds,
        "data_wait": sum(it.data_wait_seconds for it in steps) / seconds,  # share of the time
        "milliseconds": {name: 1000 * part / len(steps) for name, part in parts.items()},  # of a step
    }


def format_columns(record: MetricsRecord) -> dict[str, str]:
    """A line's numbers for people, by their titles."""
    return {
        "epoch": f"{record['epoch']:.2f}",
        "loss": f"{record['loss']:.4f}",
        "rate": f"{record['rate']:.3g}",
        "norm": f"{record['gradient_norm']:.3g}",
        "images/s": f"{record['images_per_second']:.0f}",
        "data wait": f"{record['data_wait']:.0%}",
    }


def format_log_line(record: MetricsRecord, progress: RunProgress, seconds_left: float) -> str:
    """A line of the log."""
    shown = format_columns(record)
    speed = f"{shown.pop('images/s')} images/s"
    wait = f"data wait {shown.pop('data wait')}"
    parts = [
        f"step {record['step']}/{progress.total_steps}",
        *(f"{name} {text}" for name, text in shown.items()),
        speed,
        wait,
    ]
    parts.append(f"ETA {timedelta(seconds=round(seconds_left))}")
    if record["skipped"]:
        parts.append(f"{record['skipped']} steps skipped (not finite)")
    if record["replaced"]:
        parts.append(f"{record['replaced']} unreadable images replaced")
    for name, what in _DAMAGED.items():
        if keys := record.get(name):
            more = " ..." if len(keys) > _NAMED else ""
            parts.append(f"{len(keys)} more {what}: keys {', '.join(map(str, keys[:_NAMED]))}{more}")
    return "  ".join(parts)


class EpochTimer:
    """What an epoch waited for data, or the part of it that a resumed run takes."""

    def __init__(self) -> None:
        self._began, self.steps, self.data_wait_seconds = time.perf_counter(), 0, 0.0

    def add(self, waited: float) -> None:
        """A step that waited so many seconds for its data."""
        self.steps += 1
        self.data_wait_seconds += waited

    @property
    def seconds(self) -> float:
        """Since the epoch began, evaluation included."""
        return time.perf_counter() - self._began
