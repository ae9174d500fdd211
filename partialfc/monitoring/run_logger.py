"""What a run says: the terminal, the log, metrics.jsonl, TensorBoard, summary.json. Silent on all ranks but the first."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.data.images import ImageArray
from partialfc.evaluation.embed import Embeddings
from partialfc.evaluation.sets import (
    EvaluationSet,
    Scores,
    SetEvaluation,
    UnusableEmbeddingsError,
    primary_score,
)
from partialfc.monitoring.diagnostics import log_diagnostics
from partialfc.monitoring.logger_group import SCHEDULE_GROUP, TIME_GROUP, LoggerGroup
from partialfc.monitoring.loggers import create_loggers
from partialfc.monitoring.loggers.logger import SettingValue
from partialfc.monitoring.metrics_file import MetricsFile
from partialfc.monitoring.step_metrics import (
    EpochTimer,
    MetricsWindow,
    RunProgress,
    StepMetrics,
    build_record,
    format_columns,
    format_log_line,
    throughput_fields,
)
from partialfc.monitoring.terminal import Terminal
from partialfc.runtime import timing, versions
from partialfc.runtime.checkpoint import SaveResult
from partialfc.runtime.files import SUMMARY_FILE, atomic_write


class RunLogger:
    """Collects the metrics of every step, and reads them from the device once every `every` steps: on a GPU while the next
    step is computed, so that it never has nothing to do.

    What an earlier part of the run wrote stays, up to the step that it is resumed from. A disk that takes no more does
    not end the run.

    health: numbers [h] on the device that are read beside the metrics; problem: what they say is wrong with the run after
    a step, if anything.
    """

    def __init__(
        self,
        folder: Path,
        progress: RunProgress,
        *,
        log_every: int,
        device: torch.device,
        enabled: bool,
        loggers: Sequence[str] = ("tensorboard",),
        pictures: Literal["local", "remote", "off"] = "local",
        health_numbers: Callable[[], Tensor] = lambda: torch.empty(0),
        find_problem: Callable[[Sequence[float], int], str | None] = lambda numbers, step: None,
    ) -> None:
        self._folder, self._length, self._every, self._enabled = folder, progress, log_every, enabled
        self._loggers, self._pictures = loggers, pictures
        self._health, self._problem, self.has_diverged = health_numbers, find_problem, False
        self._device, self._reads_async = device, device.type == "cuda"
        self._window: tuple[MetricsWindow, timing.Marks] | None = None  # whose line is to be written
        self._error_reported = False  # whether a disk's error was told
        self._pending_metrics: list[StepMetrics] = []
        self._began = self._timing_start = (
            time.perf_counter()
        )  # of the run here; of the steps, or since an aside
        self._line_seconds = 0.0  # of the steps since the newest line, up to the latest aside
        self._training_seconds = 0.0  # of the steps taken here, up to the newest line
        self._evaluation_seconds = 0.0  # of this part of the run
        self._epoch = EpochTimer()
        self._files = ExitStack()
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self._open(device)

    def _open(self, device: torch.device) -> None:
        start, enter = self._length.start_step, self._files.enter_context
        self._history = enter(closing(MetricsFile(self._folder / "metrics.jsonl", start)))
        self._log = enter((self._folder / "log.txt").open("a", encoding="utf-8"))
        loggers = create_loggers(self._loggers, self._folder, start)
        self._board = enter(closing(LoggerGroup(loggers, self._on_write_error, self._pictures)))
        self._timeline = enter(timing.use_timeline(device))
        self._terminal = enter(closing(Terminal(start, self._length.total_steps)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc_type is None:
            self.flush()
        with self._ignore_disk_errors():
            self._files.close()

    @property
    def elapsed_seconds(self) -> float:
        """What the run took so far, its earlier parts included."""
        return self._length.elapsed_seconds + time.perf_counter() - self._began

    @contextmanager
    def pause_timing(self) -> Iterator[None]:
        """Around what is no step: its time does not count as the steps'."""
        self._line_seconds += time.perf_counter() - self._timing_start
        with self._timeline.pause() if self._enabled else nullcontext():
            yield
        self._timing_start = time.perf_counter()

    @contextmanager
    def time_evaluation(self) -> Iterator[None]:
        """Around an evaluation, which is no step."""
        began = time.perf_counter()
        with self.pause_timing():
            yield
        self._evaluation_seconds += time.perf_counter() - began

    def tracked(self, name: str, turns: range) -> Iterator[int]:
        """Yield the batches of an evaluation set; on a terminal the display says how far it is."""
        if not self._enabled:
            yield from turns
            return
        try:
            for turn in turns:
                self._terminal.doing(f"evaluating {name}: {turn} of {len(turns)} batches")
                yield turn
        finally:
            self._terminal.doing("")

    def log_message(self, text: str) -> None:
        """A line to the terminal and the log."""
        if self._enabled:
            self.flush()
            self._terminal.print_line(text)
            with self._ignore_disk_errors():
                self._append_to_log(text)

    def log_step(self, step: int, metrics: StepMetrics) -> None:
        """After the step that makes it `log_step` steps."""
        if not self._enabled:
            return
        self.flush()
        self._pending_metrics.append(metrics)
        self._epoch.add(metrics.data_wait_seconds)
        if step % self._every == 0 or step == self._length.total_steps:
            self._window = (
                MetricsWindow(step, self._pending_metrics, self._health()),
                self._timeline.take_marks(),
            )
            self._pending_metrics = []
            if not self._reads_async or step == self._length.total_steps:
                self.flush()
        if step % self._length.steps_per_epoch == 0:
            with self._ignore_disk_errors():
                self._write_epoch_record(step)

    def flush(self) -> None:
        """Write the line of the steps whose numbers are on their way, if there are any."""
        if self._window is None:
            return
        (window, marks), self._window = self._window, None
        columns, health = window.read()
        self.has_diverged = self._problem(health, window.step) is not None
        with self._ignore_disk_errors():
            self._write_record(window.step, window.steps, columns, marks)

    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
        """The run's, in YAML and by its keys."""
        if self._enabled:
            with self._ignore_disk_errors():
                self._board.log_config(text, flat_config)

    def log_identities(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        """Embeddings [n, D] after `log_step` steps, the identity and the face of each."""
        with self._ignore_disk_errors():
            self._board.log_embeddings(step, vectors, names, images)

    def log_image(self, name: str, pixels: ImageArray, step: int) -> None:
        """For TensorBoard, of what step `log_step` works on."""
        if self._enabled:
            with self._ignore_disk_errors():
                self._board.log_image(step, name, pixels)

    def log_evaluation(
        self, step: int, sets: Sequence[EvaluationSet], embeddings: Embeddings
    ) -> dict[str, Scores]:
        """An evaluation after `log_step` steps: the sets, and the embeddings of their images. Returns each set's scores on the
        first rank, on others nothing.
        """
        if not self._enabled:
            return {}
        found = {}
        for one in sets:
            try:
                found[one.name] = one.evaluate(embeddings[one.name])
            except (
                UnusableEmbeddingsError
            ) as error:  # as of a fresh network in 16 bits; a run that diverged ends by itself
                self.log_message(f"warning: step {step}  {error}; not scored")
        with self._ignore_disk_errors():
            self.log_scores(step, found)
            for name, evaluated in found.items():
                self._board.log_figures(step, name, evaluated.figures)
        return {one: evaluated.scores for one, evaluated in found.items()}

    def has_scores(self, step: int) -> bool:
        """Whether an evaluation after `log_step` steps stands in the metrics; on the first rank."""
        return self._enabled and self._history.last_evaluated_step == step

    def log_checkpoint(self, outcome: SaveResult) -> None:
        """What came of a checkpoint."""
        if not self._enabled:
            return
        if outcome.problem is not None:
            self.log_message(f"step {outcome.step} is not saved: {outcome.problem}; training goes on")
            return
        with self._ignore_disk_errors():
            self._history.write(
                {"step": outcome.step, "saved_in": outcome.write_seconds, "stalled": outcome.stall_seconds}
            )

    def log_scores(self, step: int, found: Mapping[str, SetEvaluation]) -> None:
        """The scores of each set after `log_step` steps, by its name."""
        if not self._enabled:
            return
        if found:
            self._history.write({"step": step, "verification": {it: found[it].scores for it in found}})
        for name, evaluated in found.items():
            watched, value = primary_score(evaluated.scores)
            if evaluated.warning:
                self.log_message(f"warning: {evaluated.warning}")
            best, best_step = self._history.best.get(name, (value, step))
            self._board.log_scores(step, name, {**evaluated.scores, f"{watched}_best": best})
            self._terminal.show_score(name, value, best, best_step)
            so_far = f"; best {best:.2%} at step {best_step}" if best_step < step else ""
            self.log_message(f"step {step}  {name}: {evaluated.summary}{so_far}")

    def write_summary(self, step: int, flat_config: Mapping[str, SettingValue]) -> None:
        """The end: summary.json, the run's picture, and what came of the settings."""
        if not self._enabled:
            return
        taken = step - self._length.start_step
        latest = self._history.verification[-1] if self._history.verification else {}
        content = {
            "steps": step,
            "environment": versions.collect_versions(self._device)
            | {"device": versions.describe_device(self._device)},
            "seconds": self.elapsed_seconds,
            "evaluation_seconds": self._evaluation_seconds,
            "images_per_second": taken * self._length.global_batch_size / self._training_seconds
            if taken
            else None,
        }
        with atomic_write(self._folder / SUMMARY_FILE) as temporary:
            encoded = msgspec.json.encode(content | self._history.summary())
            temporary.write_bytes(msgspec.json.format(encoded))
        from partialfc.monitoring.plots import plot_runs  # here: matplotlib, as TensorBoard

        plot_runs([self._folder / "metrics.jsonl"], self._folder / "figures/run.png")
        with self._ignore_disk_errors():
            self._board.log_hparams(flat_config, latest)
        if latest:
            here = time.perf_counter() - self._began
            self.log_message(
                f"evaluations took {self._evaluation_seconds / here:.0%} of the time since the start"
            )
        self.log_message(
            f"finished at step {step}, after {timedelta(seconds=round(self.elapsed_seconds))}: {self._folder}"
        )

    @contextmanager
    def _ignore_disk_errors(self) -> Iterator[None]:
        """Around what is written for people: what the disk refuses is told once, and the run goes on."""
        try:
            yield
        except OSError as error:
            self._on_write_error(error)

    def _on_write_error(self, error: OSError) -> None:
        if not self._error_reported:
            self._error_reported = True
            self._terminal.print_line(
                f"{error.filename or self._folder}: {error.strerror or error}; training goes on without"
            )

    def _write_record(
        self,
        step: int,
        metrics: Sequence[StepMetrics],
        values: Sequence[Sequence[float]],
        marks: timing.Marks,
    ) -> None:
        line = build_record(step, metrics, values, self._length)
        for name, known in self._history.damaged.items():  # what an earlier part of the run has named
            if keys := [key for key in line.pop(name, []) if key not in known]:
                line[name] = keys
        spent = timing.Timeline.seconds_of(marks)
        now = time.perf_counter()
        seconds = self._line_seconds + now - self._timing_start
        self._line_seconds, self._timing_start = 0.0, now
        self._training_seconds += seconds
        line |= throughput_fields(metrics, self._length, seconds, spent)
        self._history.write(line)
        self._board.log_record(step, line)
        self._board.log_group(step, TIME_GROUP, line["milliseconds"])
        self._board.log_group(step, SCHEDULE_GROUP, line.get("settings", {}))
        left = (self._length.total_steps - step) * seconds / len(metrics)
        text = format_log_line(line, self._length, left)
        self._terminal.show_step(step, text, format_columns(line), left)
        self._append_to_log(text)
        for diagnostics in (it.diagnostics for it in metrics if it.diagnostics is not None):
            self._history.write(log_diagnostics(diagnostics, self._board))

    def _write_epoch_record(self, step: int) -> None:
        waits, self._epoch = self._epoch, EpochTimer()
        number = step // self._length.steps_per_epoch
        line = {
            "step": step,
            "epoch_steps": waits.steps,
            "epoch_seconds": waits.seconds,
            "epoch_data_wait": waits.data_wait_seconds,
        }
        self._history.write(line)
        self._board.log_record(step, line)
        self.log_message(
            f"epoch {number}: waited {waits.data_wait_seconds:.1f} s for data, of {waits.seconds:.0f} s in {waits.steps} steps"
        )

    def _append_to_log(self, text: str) -> None:
        print(time.strftime("%F %T"), text, file=self._log, flush=True)
