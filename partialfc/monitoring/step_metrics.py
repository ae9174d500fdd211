"""Metrics of single steps and the record that summarizes several steps."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor

from partialfc.monitoring.diagnostics import StepDiagnostics
from partialfc.monitoring.metrics_file import DAMAGED
from partialfc.runtime.host_copy import HostCopy
from partialfc.runtime.metrics_records import MetricsRecord

_DAMAGED = {"unreadable": "unreadable records", "corrupt": "records with corrupt JPEG data"}
_MAX_LISTED_KEYS = 8  # keys per log line


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one step; tensors are scalars on the device and equal on all ranks."""

    loss: Tensor
    grad_norm: Tensor  # gradient norm of the backbone, before clipping
    is_finite: Tensor  # bool: whether the step was applied
    lr: float  # learning rate of the backbone
    data_wait_seconds: float  # time waiting for data
    num_replaced: int  # unreadable images that were replaced
    flops: int  # floating-point operations of a rank
    diagnostics: StepDiagnostics | None = None  # if diagnostics were due
    # values of scheduled settings, by key
    scheduled_values: Mapping[str, float] = field(default_factory=dict)
    unreadable: tuple[int, ...] = ()  # keys of unreadable records that were not reported before
    corrupt: tuple[int, ...] = ()  # keys of records with decoder warnings


@dataclass(frozen=True)
class RunProgress:
    """Length of a run and the step that it starts from."""

    start_step: int  # step that the run resumes from
    total_steps: int
    steps_per_epoch: int
    global_batch_size: int  # images per step, over all ranks
    elapsed_seconds: float  # seconds of the steps before `start_step`
    peak_flops: float | None = None  # operations per second of a rank by its vendor, if known

    def is_logged(self, step: int, every: int) -> bool:
        """Return True if a record ends with this step."""
        return step % every == 0 or step == self.total_steps


class MetricsWindow:
    """Metrics of several steps, up to `step`, that are being copied to the host.

    Args:
        step: Number of completed steps.
        steps: Metrics of each step.
        health: Numbers `[h]` on the device to read together with the metrics.
    """

    def __init__(self, step: int, steps: Sequence[StepMetrics], health: Tensor) -> None:
        self.step, self.steps = step, steps
        values = torch.stack(
            [torch.stack([metrics.loss, metrics.grad_norm, metrics.is_finite.float()]) for metrics in steps]
        )
        self._host_copy = HostCopy(torch.cat([values.double().flatten(), health.double()]))

    def read(self) -> tuple[list[list[float]], list[float]]:
        """Return loss, gradient norm and `is_finite` of all steps as three lists, and the health numbers.

        Waits for these copies only.
        """
        numbers = self._host_copy.wait()
        count = 3 * len(self.steps)
        columns: list[list[float]] = numbers[:count].view(-1, 3).T.tolist()
        return columns, numbers[count:].tolist()


def build_record(
    step: int, steps: Sequence[StepMetrics], values: Sequence[Sequence[float]], progress: RunProgress
) -> MetricsRecord:
    """Return the record of several steps without its timings.

    Args:
        step: Number of completed steps.
        steps: Metrics of each step.
        values: Result of `MetricsWindow.read`.
        progress: Length of the run.
    """
    losses, norms, is_finite = values
    record: MetricsRecord = {}
    if steps[-1].scheduled_values:
        record["schedule"] = dict(steps[-1].scheduled_values)
    for name in DAMAGED:
        if keys := [key for metrics in steps for key in getattr(metrics, name)]:
            record[name] = keys
    return record | {
        "step": step,
        "epoch": step / progress.steps_per_epoch,
        "loss": sum(losses) / len(steps),
        "lr": steps[-1].lr,
        "grad_norm": norms[-1],
        "skipped_steps": len(steps) - int(sum(is_finite)),
        "replaced_images": sum(metrics.num_replaced for metrics in steps),
        "max_data_wait_seconds": max(metrics.data_wait_seconds for metrics in steps),
    }


def throughput_fields(
    steps: Sequence[StepMetrics], progress: RunProgress, seconds: float, section_seconds: Mapping[str, float]
) -> MetricsRecord:
    """Return the timing fields of a record.

    Args:
        steps: Metrics of each step.
        progress: Length of the run.
        seconds: Time of all these steps.
        section_seconds: Time of each section of these steps.
    """
    parts = {**section_seconds, "other": max(0.0, seconds - sum(section_seconds.values()))}
    rate = sum(metrics.flops for metrics in steps) / seconds
    return {
        "images_per_second": len(steps) * progress.global_batch_size / seconds,
        "tflops_per_second": rate / 1e12,
        **({"mfu": rate / progress.peak_flops} if progress.peak_flops else {}),
        "data_wait_fraction": sum(metrics.data_wait_seconds for metrics in steps) / seconds,
        "time_ms": {name: 1000 * part / len(steps) for name, part in parts.items()},  # per step
    }


def format_columns(record: MetricsRecord) -> dict[str, str]:
    """Return formatted values of a record, by column title."""
    columns = {
        "epoch": f"{record['epoch']:.2f}",
        "loss": f"{record['loss']:.4f}",
        "lr": f"{record['lr']:.3g}",
        "grad norm": f"{record['grad_norm']:.3g}",
        "images/s": f"{record['images_per_second']:.0f}",
    }
    if record["tflops_per_second"] >= 1:  # not on a CPU
        columns["TFLOP/s"] = f"{record['tflops_per_second']:.3g}"
    if "mfu" in record:
        columns["MFU"] = f"{record['mfu']:.0%}"
    return columns | {"data wait": f"{record['data_wait_fraction']:.0%}"}


def format_log_line(record: MetricsRecord, progress: RunProgress, seconds_left: float) -> str:
    """Return the log line of a record."""
    shown = format_columns(record)
    parts = [
        f"step {record['step']}/{progress.total_steps}",
        *(f"{text} {name}" if name.endswith("/s") else f"{name} {text}" for name, text in shown.items()),
        f"ETA {timedelta(seconds=round(seconds_left))}",
    ]
    if record["skipped_steps"]:
        parts.append(f"{record['skipped_steps']} steps skipped (non-finite gradients)")
    if record["replaced_images"]:
        parts.append(f"{record['replaced_images']} unreadable images replaced")
    for name, description in _DAMAGED.items():
        if keys := record.get(name):
            more = " ..." if len(keys) > _MAX_LISTED_KEYS else ""
            parts.append(
                f"{len(keys)} more {description}: keys {', '.join(map(str, keys[:_MAX_LISTED_KEYS]))}{more}"
            )
    return "  ".join(parts)


class EpochTimer:
    """Time of an epoch, or of the part of it that a resumed run trains."""

    def __init__(self) -> None:
        self._start_time, self.steps, self.data_wait_seconds = time.perf_counter(), 0, 0.0

    def add(self, data_wait_seconds: float) -> None:
        """Add a step and the seconds that it waited for data."""
        self.steps += 1
        self.data_wait_seconds += data_wait_seconds

    @property
    def seconds(self) -> float:
        """Seconds since the epoch started, including evaluation."""
        return time.perf_counter() - self._start_time
