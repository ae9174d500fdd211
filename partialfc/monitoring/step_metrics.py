"""The numbers of some steps: what one brings, and the line that a few of them make."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor

from partialfc.monitoring.diagnostics import StepDiagnostics
from partialfc.monitoring.metrics_file import DAMAGED, Line
from partialfc.runtime.host_copy import Reading

_DAMAGED = {"unreadable": "unreadable records", "corrupt": "records with corrupt JPEG data"}
_NAMED = 8  # keys in a line of the log


@dataclass(frozen=True)
class Metrics:
    """What one step brings; the tensors are scalars on the device, the same on every rank."""

    loss: Tensor
    gradient_norm: Tensor  # of the backbone, before clipping
    finite: Tensor  # bool: whether the step was taken
    lr: float  # the backbone's learning rate
    waited: float  # seconds for data
    replaced: int  # images that could not be read
    diagnostics: StepDiagnostics | None = None  # where the step was looked at more closely
    # those that change as training goes on, by their keys
    settings: Mapping[str, float] = field(default_factory=dict)
    unreadable: tuple[int, ...] = ()  # keys of records that could not be read, not named before
    corrupt: tuple[int, ...] = ()  # those of which the decoder warned


@dataclass(frozen=True)
class RunProgress:
    """How far a run goes, and how far it has come."""

    start: int  # the step it goes on from
    total: int  # steps
    steps_per_epoch: int
    batch: int  # images a step, over all ranks
    seconds: float  # that the steps before `start` took


class Window:
    """Some steps, up to number `step`, whose numbers are on their way to the host.

    health: what else is to be read beside them, [h] on the device.
    """

    def __init__(self, step: int, steps: Sequence[Metrics], health: Tensor) -> None:
        self.step, self.steps = step, steps
        values = torch.stack([torch.stack([it.loss, it.gradient_norm, it.finite.float()]) for it in steps])
        self._reading = Reading(torch.cat([values.double().flatten(), health.double()]))

    def read(self) -> tuple[list[list[float]], list[float]]:
        """Loss, norm, and whether it was taken, of each step, by what they are; and the health. Waits for these alone."""
        numbers = self._reading.wait()
        count = 3 * len(self.steps)
        columns: list[list[float]] = numbers[:count].view(-1, 3).T.tolist()
        return columns, numbers[count:].tolist()


def line_of(
    step: int, steps: Sequence[Metrics], columns: Sequence[Sequence[float]], length: RunProgress
) -> Line:
    """The newest `steps`, up to number `step`, without what takes a clock. columns: from their Window."""
    losses, norms, taken = columns
    beside: Line = {"settings": dict(steps[-1].settings)} if steps[-1].settings else {}
    for name in DAMAGED:
        if keys := [key for it in steps for key in getattr(it, name)]:
            beside[name] = keys
    return beside | {
        "step": step,
        "epoch": step / length.steps_per_epoch,
        "loss": sum(losses) / len(steps),
        "rate": steps[-1].lr,
        "gradient_norm": norms[-1],
        "skipped": len(steps) - int(sum(taken)),
        "replaced": sum(it.replaced for it in steps),
        "longest_data_wait": max(it.waited for it in steps),  # seconds, of one step
    }


def speed_of(
    steps: Sequence[Metrics], length: RunProgress, seconds: float, spent: Mapping[str, float]
) -> Line:
    """What took `seconds`, of which the sections of the steps took those `spent`."""
    parts = {**spent, "other": max(0.0, seconds - sum(spent.values()))}
    return {
        "images_per_second": len(steps) * length.batch / seconds,
        "data_wait": sum(it.waited for it in steps) / seconds,  # share of the time
        "milliseconds": {name: 1000 * part / len(steps) for name, part in parts.items()},  # of a step
    }


def columns_of(line: Line) -> dict[str, str]:
    """A line's numbers for people, by their titles."""
    return {
        "epoch": f"{line['epoch']:.2f}",
        "loss": f"{line['loss']:.4f}",
        "rate": f"{line['rate']:.3g}",
        "norm": f"{line['gradient_norm']:.3g}",
        "images/s": f"{line['images_per_second']:.0f}",
        "data wait": f"{line['data_wait']:.0%}",
    }


def log_line(line: Line, length: RunProgress, seconds_left: float) -> str:
    """A line of the log."""
    shown = columns_of(line)
    speed = f"{shown.pop('images/s')} images/s"
    wait = f"data wait {shown.pop('data wait')}"
    parts = [
        f"step {line['step']}/{length.total}",
        *(f"{name} {text}" for name, text in shown.items()),
        speed,
        wait,
    ]
    parts.append(f"ETA {timedelta(seconds=round(seconds_left))}")
    if line["skipped"]:
        parts.append(f"{line['skipped']} steps skipped (not finite)")
    if line["replaced"]:
        parts.append(f"{line['replaced']} unreadable images replaced")
    for name, what in _DAMAGED.items():
        if keys := line.get(name):
            more = " ..." if len(keys) > _NAMED else ""
            parts.append(f"{len(keys)} more {what}: keys {', '.join(map(str, keys[:_NAMED]))}{more}")
    return "  ".join(parts)


class Waits:
    """What an epoch waited for data, or the part of it that a resumed run takes."""

    def __init__(self) -> None:
        self._began, self.steps, self.waited = time.perf_counter(), 0, 0.0

    def add(self, waited: float) -> None:
        """A step that waited so many seconds for its data."""
        self.steps += 1
        self.waited += waited

    @property
    def seconds(self) -> float:
        """Since the epoch began, evaluation included."""
        return time.perf_counter() - self._began
