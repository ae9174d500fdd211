"""What a run says: the log, metrics.jsonl, TensorBoard, summary.json. Silent on all ranks but the first."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.runtime.files import published

Scores = Mapping[str, Mapping[str, float]]  # of each verification set


@dataclass(frozen=True)
class Metrics:
    """Of one step; the tensors are scalars on the device, the same on every rank."""

    loss: Tensor
    gradient_norm: Tensor  # of the backbone, before clipping
    finite: Tensor  # bool: whether the step was taken
    rate: float
    waited: float  # seconds for data
    replaced: int  # images that could not be read


@dataclass(frozen=True)
class Length:
    """How far a run goes, and how far it has come."""

    start: int  # the step it goes on from
    total: int  # steps
    steps_per_epoch: int
    batch: int  # images a step, over all ranks
    seconds: float  # that the steps before `start` took


class _Waits:
    """Of an epoch, or of what a resumed run makes of it."""

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


class Report:
    """Collects the metrics of every step, and reads them from the device once every `every` steps.

    What an earlier part of the run wrote stays, up to the step that it is resumed from.
    """

    def __init__(self, folder: Path, length: Length, *, every: int, enabled: bool) -> None:
        self._folder, self._length, self._every, self._enabled = folder, length, every, enabled
        self._kept: list[Metrics] = []
        self._seconds = length.seconds  # of training and evaluation, up to the newest line
        self._training_seconds = 0.0  # of the steps taken here, without evaluation
        self._line_began = time.perf_counter()
        self._epoch = _Waits()
        self._loss: float | None = None  # mean of the newest line; None before the first
        self._verification: list[Scores] = []  # the first, and the newest
        self._files = contextlib.ExitStack()
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self._open()

    def _open(self) -> None:
        # Imported here: it takes a second, and one rank of many needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._recall(self._folder / "metrics.jsonl")
        self._log = self._files.enter_context((self._folder / "log.txt").open("a", encoding="utf-8"))
        self._lines = self._files.enter_context((self._folder / "metrics.jsonl").open("ab"))
        board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._length.start + 1)
        self._board = self._files.enter_context(board)

    def _recall(self, path: Path) -> None:
        """Keep of an earlier part of the run what was before the step that this one starts at."""
        lines = path.read_bytes().splitlines() if path.exists() and self._length.start else []
        earlier = [line for line in map(_parsed, lines) if line and line["step"] <= self._length.start]
        for line in earlier:
            self._loss = line.get("loss", self._loss)
            if "verification" in line:
                self._verification = [*self._verification[:1], line["verification"]]
        with published(path) as draft:
            draft.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in earlier))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    @property
    def seconds(self) -> float:
        """What the run took so far, its earlier parts included."""
        return self._seconds + time.perf_counter() - self._line_began

    def say(self, text: str) -> None:
        """A line to the terminal and the log."""
        if self._enabled:
            print(text, flush=True)
            print(time.strftime("%F %T"), text, file=self._log, flush=True)

    def step(self, step: int, metrics: Metrics) -> None:
        """After the step that makes it `step` steps."""
        if not self._enabled:
            return
        self._kept.append(metrics)
        self._epoch.add(metrics.waited)
        if step % self._every == 0 or step == self._length.total:
            self._line(step)
        if step % self._length.steps_per_epoch == 0:
            self._epoch_line(step)

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """An RGB image [H, W, 3] for TensorBoard, of what step `step` works on."""
        if self._enabled:
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def scores(self, step: int, scores: Scores) -> None:
        """Of a verification after `step` steps."""
        if not self._enabled:
            return
        if scores:
            self._write({"step": step, "verification": scores})
        self._verification = [*self._verification[:1], scores]
        for name, values in scores.items():
            for score, value in values.items():
                self._board.add_scalar(f"{name}/{score}", value, step)
            self.say(
                f"step {step}  {name}: accuracy {values['accuracy']:.2%} +- {values['accuracy_std']:.2%}, "
                f"AUC {values['auc']:.4f}, TAR@FAR 1e-3 {values['tar@far=1e-3']:.2%}, "
                f"1e-4 {values['tar@far=1e-4']:.2%}"
            )
        self._clock()  # its time is not the steps'

    def summary(self, step: int) -> None:
        """The end: summary.json, and the run's picture."""
        if not self._enabled:
            return
        taken = step - self._length.start
        content = {
            "steps": step,
            "seconds": self.seconds,
            "images_per_second": taken * self._length.batch / self._training_seconds if taken else None,
            "loss": self._loss,
            "verification_before": self._verification[0] if self._verification else {},
            "verification": self._verification[-1] if self._verification else {},
        }
        with published(self._folder / "summary.json") as draft:
            draft.write_bytes(msgspec.json.format(msgspec.json.encode(content)))
        from partialfc.runtime.figures import draw_runs  # here, as TensorBoard's

        draw_runs([self._folder / "metrics.jsonl"], self._folder / "figures/run.png")

    def _clock(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        passed, self._line_began = now - self._line_began, now
        self._seconds += passed
        return passed

    def _line(self, step: int) -> None:
        kept, self._kept = self._kept, []
        values = torch.stack([torch.stack([it.loss, it.gradient_norm, it.finite.float()]) for it in kept])
        losses, norms, taken = values.double().T.tolist()  # the one wait for the device
        seconds = self._clock()
        self._training_seconds += seconds
        length = self._length
        self._loss = sum(losses) / len(kept)
        line: dict[str, Any] = {
            "step": step,
            "epoch": step / length.steps_per_epoch,
            "loss": self._loss,
            "rate": kept[-1].rate,
            "gradient_norm": norms[-1],
            "images_per_second": len(kept) * length.batch / seconds,
            "data_wait": sum(it.waited for it in kept) / seconds,  # share of the time
            "longest_data_wait": max(it.waited for it in kept),  # of a step, in seconds
            "skipped": len(kept) - int(sum(taken)),
            "replaced": sum(it.replaced for it in kept),
        }
        self._write(line)
        for name, value in line.items():
            self._board.add_scalar(f"train/{name}", value, step)
        left = timedelta(seconds=round((length.total - step) * seconds / len(kept)))
        self.say(
            f"step {step}/{length.total}  epoch {line['epoch']:.2f}  loss {line['loss']:.4f}  "
            f"rate {line['rate']:.3g}  norm {line['gradient_norm']:.3g}  "
            f"{line['images_per_second']:.0f} images/s  data wait {line['data_wait']:.0%}  ETA {left}"
            + (f"  {line['skipped']} steps skipped (not finite)" if line["skipped"] else "")
            + (f"  {line['replaced']} images unreadable, others in their place" if line["replaced"] else "")
        )

    def _epoch_line(self, step: int) -> None:
        waits, self._epoch = self._epoch, _Waits()
        number = step // self._length.steps_per_epoch
        self._write(
            {
                "step": step,
                "epoch_steps": waits.steps,
                "epoch_seconds": waits.seconds,
                "epoch_data_wait": waits.waited,
            }
        )
        self._board.add_scalar("epoch/data_wait", waits.waited, step)
        self.say(
            f"epoch {number}: waited {waits.waited:.1f} s for data, of {waits.seconds:.0f} s in {waits.steps} steps"
        )

    def _write(self, line: dict[str, Any]) -> None:
        self._lines.write(msgspec.json.encode(line) + b"\n")
        self._lines.flush()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None for one that a killed process left half written."""
    try:
        parsed: dict[str, Any] = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return parsed
