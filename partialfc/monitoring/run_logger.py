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

from partialfc.data.images import Pixels
from partialfc.evaluation.embed import Embeddings
from partialfc.evaluation.sets import (
    Evaluated,
    EvaluationSet,
    Scores,
    UnusableEmbeddingsError,
    headline,
)
from partialfc.monitoring.diagnostics import show
from partialfc.monitoring.logger_group import SETTINGS, TIME, Board
from partialfc.monitoring.loggers import opened
from partialfc.monitoring.loggers.logger import Setting
from partialfc.monitoring.metrics_file import History
from partialfc.monitoring.step_metrics import (
    Metrics,
    RunProgress,
    Waits,
    Window,
    columns_of,
    line_of,
    log_line,
    speed_of,
)
from partialfc.monitoring.terminal import Terminal
from partialfc.runtime import timing, versions
from partialfc.runtime.checkpoint import Outcome
from partialfc.runtime.files import SUMMARY, atomic_write


class Report:
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
        length: RunProgress,
        *,
        every: int,
        device: torch.device,
        enabled: bool,
        loggers: Sequence[str] = ("tensorboard",),
        pictures: Literal["local", "remote", "off"] = "local",
        health: Callable[[], Tensor] = lambda: torch.empty(0),
        problem: Callable[[Sequence[float], int], str | None] = lambda numbers, step: None,
    ) -> None:
        self._folder, self._length, self._every, self._enabled = folder, length, every, enabled
        self._loggers, self._pictures = loggers, pictures
        self._health, self._problem, self.diverged = health, problem, False
        self._device, self._reads_later = device, device.type == "cuda"
        self._window: tuple[Window, timing.Marks] | None = None  # whose line is to be written
        self._full = False  # whether a disk's error was told
        self._kept: list[Metrics] = []
        self._began = self._since = time.perf_counter()  # of the run here; of the steps, or since an aside
        self._line_seconds = 0.0  # of the steps since the newest line, up to the latest aside
        self._training_seconds = 0.0  # of the steps taken here, up to the newest line
        self._evaluation_seconds = 0.0  # of this part of the run
        self._epoch = Waits()
        self._files = ExitStack()
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self._open(device)

    def _open(self, device: torch.device) -> None:
        start, enter = self._length.start, self._files.enter_context
        self._history = enter(closing(History(self._folder / "metrics.jsonl", start)))
        self._log = enter((self._folder / "log.txt").open("a", encoding="utf-8"))
        loggers = opened(self._loggers, self._folder, start)
        self._board = enter(closing(Board(loggers, self._refused, self._pictures)))
        self._timeline = enter(timing.measured(device))
        self._terminal = enter(closing(Terminal(start, self._length.total)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.catch_up()
        with self._spared():
            self._files.close()

    @property
    def seconds(self) -> float:
        """What the run took so far, its earlier parts included."""
        return self._length.seconds + time.perf_counter() - self._began

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Around what is no step: its time does not count as the steps'."""
        self._line_seconds += time.perf_counter() - self._since
        with self._timeline.paused() if self._enabled else nullcontext():
            yield
        self._since = time.perf_counter()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation, which is no step."""
        began = time.perf_counter()
        with self.untimed():
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

    def say(self, text: str) -> None:
        """A line to the terminal and the log."""
        if self._enabled:
            self.catch_up()
            self._terminal.say(text)
            with self._spared():
                self._keep(text)

    def step(self, step: int, metrics: Metrics) -> None:
        """After the step that makes it `step` steps."""
        if not self._enabled:
            return
        self.catch_up()
        self._kept.append(metrics)
        self._epoch.add(metrics.waited)
        if step % self._every == 0 or step == self._length.total:
            self._window = Window(step, self._kept, self._health()), self._timeline.cut()
            self._kept = []
            if not self._reads_later or step == self._length.total:
                self.catch_up()
        if step % self._length.steps_per_epoch == 0:
            with self._spared():
                self._epoch_line(step)

    def catch_up(self) -> None:
        """Write the line of the steps whose numbers are on their way, if there are any."""
        if self._window is None:
            return
        (window, marks), self._window = self._window, None
        columns, health = window.read()
        self.diverged = self._problem(health, window.step) is not None
        with self._spared():
            self._line(window.step, window.steps, columns, marks)

    def recipe(self, text: str, settings: Mapping[str, Setting]) -> None:
        """The run's, in YAML and by its keys."""
        if self._enabled:
            with self._spared():
                self._board.recipe(text, settings)

    def identities(
        self, step: int, vectors: NDArray[np.float32], names: list[str], faces: list[Pixels]
    ) -> None:
        """Embeddings [n, D] after `step` steps, the identity and the face of each."""
        with self._spared():
            self._board.embeddings(step, vectors, names, faces)

    def picture(self, name: str, pixels: Pixels, step: int) -> None:
        """For TensorBoard, of what step `step` works on."""
        if self._enabled:
            with self._spared():
                self._board.picture(step, name, pixels)

    def evaluated(
        self, step: int, sets: Sequence[EvaluationSet], embeddings: Embeddings
    ) -> dict[str, Scores]:
        """An evaluation after `step` steps: the sets, and the embeddings of their images. Returns each set's scores on the
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
                self.say(f"warning: step {step}  {error}; not scored")
        with self._spared():
            self.scores(step, found)
            for name, evaluated in found.items():
                self._board.pictures_of(step, name, evaluated.pictures)
        return {one: evaluated.scores for one, evaluated in found.items()}

    def has_scores(self, step: int) -> bool:
        """Whether an evaluation after `step` steps stands in the metrics; on the first rank."""
        return self._enabled and self._history.verified_step == step

    def saved(self, outcome: Outcome) -> None:
        """What came of a checkpoint."""
        if not self._enabled:
            return
        if outcome.problem is not None:
            self.say(f"step {outcome.step} is not saved: {outcome.problem}; training goes on")
            return
        with self._spared():
            self._history.write(
                {"step": outcome.step, "saved_in": outcome.seconds, "stalled": outcome.stalled}
            )

    def scores(self, step: int, found: Mapping[str, Evaluated]) -> None:
        """The scores of each set after `step` steps, by its name."""
        if not self._enabled:
            return
        if found:
            self._history.write({"step": step, "verification": {it: found[it].scores for it in found}})
        for name, evaluated in found.items():
            watched, value = headline(evaluated.scores)
            if evaluated.warning:
                self.say(f"warning: {evaluated.warning}")
            best, best_step = self._history.best.get(name, (value, step))
            self._board.scores(step, name, {**evaluated.scores, f"{watched}_best": best})
            self._terminal.evaluated(name, value, best, best_step)
            so_far = f"; best {best:.2%} at step {best_step}" if best_step < step else ""
            self.say(f"step {step}  {name}: {evaluated.in_words}{so_far}")

    def summary(self, step: int, settings: Mapping[str, Setting]) -> None:
        """The end: summary.json, the run's picture, and what came of the settings."""
        if not self._enabled:
            return
        taken = step - self._length.start
        latest = self._history.verification[-1] if self._history.verification else {}
        content = {
            "steps": step,
            "environment": versions.versions(self._device) | {"device": versions.described(self._device)},
            "seconds": self.seconds,
            "evaluation_seconds": self._evaluation_seconds,
            "images_per_second": taken * self._length.batch / self._training_seconds if taken else None,
        }
        with atomic_write(self._folder / SUMMARY) as temporary:
            encoded = msgspec.json.encode(content | self._history.summary())
            temporary.write_bytes(msgspec.json.format(encoded))
        from partialfc.monitoring.plots import draw_runs  # here: matplotlib, as TensorBoard

        draw_runs([self._folder / "metrics.jsonl"], self._folder / "figures/run.png")
        with self._spared():
            self._board.outcome(settings, latest)
        if latest:
            here = time.perf_counter() - self._began
            self.say(f"evaluations took {self._evaluation_seconds / here:.0%} of the time since the start")
        self.say(f"finished at step {step}, after {timedelta(seconds=round(self.seconds))}: {self._folder}")

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Around what is written for people: what the disk refuses is told once, and the run goes on."""
        try:
            yield
        except OSError as error:
            self._refused(error)

    def _refused(self, error: OSError) -> None:
        if not self._full:
            self._full = True
            self._terminal.say(
                f"{error.filename or self._folder}: {error.strerror or error}; training goes on without"
            )

    def _line(
        self, step: int, kept: Sequence[Metrics], columns: Sequence[Sequence[float]], marks: timing.Marks
    ) -> None:
        line = line_of(step, kept, columns, self._length)
        for name, known in self._history.damaged.items():  # what an earlier part of the run has named
            if keys := [key for key in line.pop(name, []) if key not in known]:
                line[name] = keys
        spent = timing.Timeline.seconds_of(marks)
        now = time.perf_counter()
        seconds = self._line_seconds + now - self._since
        self._line_seconds, self._since = 0.0, now
        self._training_seconds += seconds
        line |= speed_of(kept, self._length, seconds, spent)
        self._history.write(line)
        self._board.numbers(step, line)
        self._board.group(step, TIME, line["milliseconds"])
        self._board.group(step, SETTINGS, line.get("settings", {}))
        left = (self._length.total - step) * seconds / len(kept)
        text = log_line(line, self._length, left)
        self._terminal.steps(step, text, columns_of(line), left)
        self._keep(text)
        for diagnostics in (it.diagnostics for it in kept if it.diagnostics is not None):
            self._history.write(show(diagnostics, self._board))

    def _epoch_line(self, step: int) -> None:
        waits, self._epoch = self._epoch, Waits()
        number = step // self._length.steps_per_epoch
        line = {
            "step": step,
            "epoch_steps": waits.steps,
            "epoch_seconds": waits.seconds,
            "epoch_data_wait": waits.waited,
        }
        self._history.write(line)
        self._board.numbers(step, line)
        self.say(
            f"epoch {number}: waited {waits.waited:.1f} s for data, of {waits.seconds:.0f} s in {waits.steps} steps"
        )

    def _keep(self, text: str) -> None:
        print(time.strftime("%F %T"), text, file=self._log, flush=True)
