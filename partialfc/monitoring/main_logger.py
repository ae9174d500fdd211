"""Output of a run on rank 0: terminal, log.txt, metrics.jsonl, loggers, and summary.json."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from partialfc.data.images import ImageArray
from partialfc.evaluation.embed import Embeddings
from partialfc.evaluation.sets import (
    EvaluationSet,
    Scores,
    SetEvaluation,
    UnusableEmbeddingsError,
    primary_score,
)
from partialfc.input_files import require_file
from partialfc.monitoring.diagnostics import log_diagnostics
from partialfc.monitoring.logger_group import RANK_TIME_GROUP, SCHEDULE_GROUP, TIME_GROUP, LoggerGroup
from partialfc.monitoring.loggers import create_loggers
from partialfc.monitoring.loggers.logger import SettingValue
from partialfc.monitoring.metrics_file import MetricsFile
from partialfc.monitoring.rank_times import RankTimes
from partialfc.monitoring.run_logger import RunLogger
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
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.files import SUMMARY_FILE, atomic_write, name_os_errors


class MainRunLogger(RunLogger):
    """Run logger of rank 0.

    Metrics stay on the device and are read every `log_every` steps. On a GPU they are read while the next
    step runs, so the GPU is never idle. Records of an earlier part of the run are retained up to the step
    that it resumes from. A full disk does not end the run.

    Args:
        folder: Folder of the run.
        progress: Length of the run and the step that it starts from.
        log_every: Steps between two records.
        device: Device of the metrics.
        loggers: Names of the loggers.
        pictures: `local`: only loggers that keep images on this machine get them; `remote`: all; `off`:
            none.
        health_numbers: Returns numbers `[h]` on the device that are read together with the metrics.
        find_problem: Returns the problem that these numbers show after a step, if any.
        rank_times: Exchange of section times; None for a single rank.
    """

    def __init__(
        self,
        folder: Path,
        progress: RunProgress,
        *,
        log_every: int,
        device: torch.device,
        loggers: Sequence[str] = ("tensorboard",),
        pictures: Literal["local", "remote", "off"] = "local",
        health_numbers: Callable[[], Tensor] = lambda: torch.empty(0),
        find_problem: Callable[[Sequence[float], int], str | None] = lambda numbers, step: None,
        rank_times: RankTimes | None = None,
    ) -> None:
        self._folder, self._progress, self._log_every = folder, progress, log_every
        self._loggers, self._pictures = loggers, pictures
        self._health_numbers, self._find_problem, self.has_diverged = health_numbers, find_problem, False
        self._device, self._reads_async = device, device.type == "cuda"
        self._rank_times = rank_times
        # Step, number of steps and section times of the latest record, until they are exchanged.
        self._section_times: tuple[int, int, dict[str, float]] | None = None
        # Steps whose record is not written yet.
        self._window: tuple[MetricsWindow, timing.Marks] | None = None
        self._error_reported = False  # a disk error is reported once
        self._pending_metrics: list[StepMetrics] = []
        # Start of this part of the run; start of the current timed interval.
        self._start_time = self._timing_start = time.perf_counter()
        self._record_seconds = 0.0  # seconds of the steps since the latest record, up to the latest pause
        self._training_seconds = 0.0  # seconds of all steps of this part of the run, up to the latest record
        self._evaluation_seconds = 0.0  # seconds of all evaluations of this part of the run
        self._epoch = EpochTimer()
        self._files = ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        self._open(device)

    def _open(self, device: torch.device) -> None:
        start, enter = self._progress.start_step, self._files.enter_context
        self._metrics_file = enter(closing(MetricsFile(self._folder / "metrics.jsonl", start)))
        log = self._folder / "log.txt"
        if log.exists():
            require_file(log)
        self._log = enter(log.open("a", encoding="utf-8"))
        loggers = create_loggers(self._loggers, self._folder, start)
        self._logger_group = enter(closing(LoggerGroup(loggers, self._on_write_error, self._pictures)))
        self._timeline = enter(timing.use_timeline(device))
        self._terminal = enter(closing(Terminal(start, self._progress.total_steps)))

    @override
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.flush()
        with self._ignore_disk_errors():
            self._files.close()

    @property
    @override
    def elapsed_seconds(self) -> float:
        return self._progress.elapsed_seconds + time.perf_counter() - self._start_time

    @override
    @contextmanager
    def pause_timing(self) -> Iterator[None]:
        self._record_seconds += time.perf_counter() - self._timing_start
        with self._timeline.pause():
            yield
        self._timing_start = time.perf_counter()

    @override
    @contextmanager
    def time_evaluation(self) -> Iterator[None]:
        start_time = time.perf_counter()
        with self.pause_timing():
            yield
        self._evaluation_seconds += time.perf_counter() - start_time

    @override
    def tracked(self, name: str, turns: range) -> Iterator[int]:
        try:
            for turn in turns:
                self._terminal.show_activity(f"evaluating {name}: {turn} of {len(turns)} batches")
                yield turn
        finally:
            self._terminal.show_activity("")

    @override
    def log_message(self, text: str) -> None:
        self.flush()
        self._terminal.print_line(text)
        with self._ignore_disk_errors():
            self._append_to_log(text)

    @override
    def log_step(self, step: int, metrics: StepMetrics) -> None:
        self.flush()
        self._exchange_times()
        self._pending_metrics.append(metrics)
        self._epoch.add(metrics.data_wait_seconds)
        if self._progress.is_logged(step, self._log_every):
            self._window = (
                MetricsWindow(step, self._pending_metrics, self._health_numbers()),
                self._timeline.take_marks(),
            )
            self._pending_metrics = []
            if not self._reads_async or step == self._progress.total_steps:
                self.flush()
        if step % self._progress.steps_per_epoch == 0:
            with self._ignore_disk_errors():
                self._write_epoch_record(step)

    @override
    def flush(self) -> None:
        if self._window is None:
            return
        (window, marks), self._window = self._window, None
        columns, health = window.read()
        self.has_diverged = self._find_problem(health, window.step) is not None
        self._write_record(window.step, window.steps, columns, marks)

    @override
    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
        with self._ignore_disk_errors():
            self._logger_group.log_config(text, flat_config)

    @override
    def log_identities(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        with self._ignore_disk_errors():
            self._logger_group.log_embeddings(step, vectors, names, images)

    @override
    def log_image(self, name: str, image: ImageArray, step: int) -> None:
        with self._ignore_disk_errors():
            self._logger_group.log_image(step, name, image)

    @override
    def log_evaluation(
        self, step: int, sets: Sequence[EvaluationSet], embeddings: Embeddings
    ) -> dict[str, Scores]:
        results = {}
        for eval_set in sets:
            try:
                results[eval_set.name] = eval_set.evaluate(embeddings[eval_set.name])
            except UnusableEmbeddingsError as error:
                # A new network in float16 may overflow; a diverged run ends by itself.
                self.log_message(f"warning: step {step}  {error}; not scored")
        with self._ignore_disk_errors():
            self.log_scores(step, results)
            for name, evaluation in results.items():
                self._logger_group.log_figures(step, name, evaluation.figures)
        return {name: evaluation.scores for name, evaluation in results.items()}

    @override
    def has_scores(self, step: int) -> bool:
        return self._metrics_file.last_evaluated_step == step

    @override
    def log_checkpoint(self, result: SaveResult) -> None:
        for warning in result.warnings:
            self.log_message(f"warning: checkpoint at step {result.step}: {warning}")
        if result.problem is not None:
            self.log_message(f"checkpoint at step {result.step} failed: {result.problem}; training continues")
            return
        with self._ignore_disk_errors():
            self._metrics_file.write(
                {
                    "step": result.step,
                    "checkpoint_write_seconds": result.write_seconds,
                    "checkpoint_stall_seconds": result.stall_seconds,
                }
            )

    def log_scores(self, step: int, results: Mapping[str, SetEvaluation]) -> None:
        """Log the scores of each set, by its name."""
        if results:
            scores = {name: evaluation.scores for name, evaluation in results.items()}
            with self._ignore_disk_errors():
                self._metrics_file.write({"step": step, "verification": scores})
        for name, evaluation in results.items():
            score_name, value = primary_score(evaluation.scores)
            if evaluation.warning:
                self.log_message(f"warning: {evaluation.warning}")
            best, best_step = self._metrics_file.best.get(name, (value, step))
            self._logger_group.log_scores(step, name, {**evaluation.scores, f"{score_name}_best": best})
            self._terminal.show_score(name, value, best, best_step)
            so_far = f"; best {best:.2%} at step {best_step}" if best_step < step else ""
            self.log_message(f"step {step}  {name}: {evaluation.summary}{so_far}")

    @override
    def write_summary(self, step: int, flat_config: Mapping[str, SettingValue]) -> None:
        num_steps = step - self._progress.start_step
        latest = self._metrics_file.verification[-1] if self._metrics_file.verification else {}
        content = {
            "steps": step,
            "environment": versions.collect_versions(self._device)
            | {"device": versions.describe_device(self._device)},
            "seconds": self.elapsed_seconds,
            "evaluation_seconds": self._evaluation_seconds,
            "images_per_second": num_steps * self._progress.global_batch_size / self._training_seconds
            if num_steps
            else None,
        }
        with atomic_write(self._folder / SUMMARY_FILE) as temporary:
            encoded = msgspec.json.encode(content | self._metrics_file.summary())
            temporary.write_bytes(msgspec.json.format(encoded))
        from partialfc.monitoring.plots import plot_runs  # imported late: matplotlib is slow to import

        plot_runs([self._folder / "metrics.jsonl"], self._folder / "figures/run.png")
        with self._ignore_disk_errors():
            self._logger_group.log_hparams(flat_config, latest)
        if latest:
            elapsed_seconds = time.perf_counter() - self._start_time
            self.log_message(
                f"evaluation took {self._evaluation_seconds / elapsed_seconds:.0%} of the run time"
            )
        self.log_message(
            f"finished at step {step} in {timedelta(seconds=round(self.elapsed_seconds))}: {self._folder}"
        )

    @contextmanager
    def _ignore_disk_errors(self) -> Iterator[None]:
        """Report the first disk error and continue."""
        try:
            yield
        except OSError as error:
            self._on_write_error(error)

    def _on_write_error(self, error: OSError) -> None:
        if not self._error_reported:
            self._error_reported = True
            if error.filename is None and error.errno is not None:
                error.filename = str(self._folder)
            self._terminal.print_line(f"{format_error(error)}; training continues without it")

    def _write_record(
        self,
        step: int,
        metrics: Sequence[StepMetrics],
        values: Sequence[Sequence[float]],
        marks: timing.Marks,
    ) -> None:
        record = build_record(step, metrics, values, self._progress)
        # Records that an earlier part of the run has reported are left out.
        for name, reported in self._metrics_file.damaged.items():
            if keys := [key for key in record.pop(name, []) if key not in reported]:
                record[name] = keys
        section_seconds = timing.Timeline.seconds_of(marks)
        self._section_times = step, len(metrics), section_seconds
        now = time.perf_counter()
        seconds = self._record_seconds + now - self._timing_start
        self._record_seconds, self._timing_start = 0.0, now
        self._training_seconds += seconds
        record |= throughput_fields(metrics, self._progress, seconds, section_seconds)
        seconds_left = (self._progress.total_steps - step) * seconds / len(metrics)
        text = format_log_line(record, self._progress, seconds_left)
        with self._ignore_disk_errors():
            self._metrics_file.write(record)
        self._terminal.show_step(step, text, format_columns(record), seconds_left)
        with self._ignore_disk_errors():
            self._append_to_log(text)
        with self._ignore_disk_errors():
            self._logger_group.log_record(step, record)
            self._logger_group.log_group(step, TIME_GROUP, record["time_ms"])
            self._logger_group.log_group(step, SCHEDULE_GROUP, record.get("schedule", {}))
            for diagnostics in (it.diagnostics for it in metrics if it.diagnostics):
                self._metrics_file.write(log_diagnostics(diagnostics, self._logger_group))

    def _exchange_times(self) -> None:
        """Exchange the section times of the latest record with the other ranks, and log those of the record before."""
        if self._rank_times is None or self._section_times is None:
            return
        report, self._section_times = self._rank_times.exchange(*self._section_times), None
        if report is None:
            return
        with self._ignore_disk_errors():
            self._metrics_file.write(
                {"step": report.step, "rank_time_ms": report.sections, "slowest_rank": report.slowest}
            )
            for name, times in report.sections.items():
                values = {f"{name}_{what}": value for what, value in times.items()}
                self._logger_group.log_group(report.step, RANK_TIME_GROUP, values)
        if report.warning:
            self.log_message(f"warning: step {report.step}  {report.warning}")

    def _write_epoch_record(self, step: int) -> None:
        timer, self._epoch = self._epoch, EpochTimer()
        record = {
            "step": step,
            "epoch_steps": timer.steps,
            "epoch_seconds": timer.seconds,
            "epoch_data_wait_seconds": timer.data_wait_seconds,
        }
        self._metrics_file.write(record)
        self._logger_group.log_record(step, record)
        self.log_message(
            f"epoch {step // self._progress.steps_per_epoch}: {timer.steps} steps in {timer.seconds:.0f} s, "
            f"{timer.data_wait_seconds:.1f} s waiting for data"
        )

    def _append_to_log(self, text: str) -> None:
        with name_os_errors(self._folder / "log.txt"):
            print(time.strftime("%F %T"), text, file=self._log, flush=True)
