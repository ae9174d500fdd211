"""Interface of the output of a run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from partialfc.data.images import ImageArray
from partialfc.evaluation.embed import Embeddings
from partialfc.evaluation.sets import EvaluationSet, Scores
from partialfc.monitoring.loggers.logger import SettingValue
from partialfc.monitoring.rank_times import RankTimes
from partialfc.monitoring.step_metrics import RunProgress, StepMetrics
from partialfc.runtime import timing
from partialfc.runtime.checkpoint import SaveResult


class RunLogger:
    """Output of a run. This class discards everything.

    `MainRunLogger` is its subclass for rank 0, and `RankLogger` for the other ranks.
    """

    has_diverged = False  # whether the latest metrics show a problem that ends the run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Flush and close all outputs."""

    @property
    def elapsed_seconds(self) -> float:
        """Seconds of the run so far, including its earlier parts; 0.0 off rank 0."""
        return 0.0

    def pause_timing(self) -> AbstractContextManager[None]:
        """Pause the step timer during work that is not part of a step."""
        return nullcontext()

    def time_evaluation(self) -> AbstractContextManager[None]:
        """Pause the step timer during an evaluation, and add its time to the evaluation time."""
        return nullcontext()

    def tracked(self, name: str, turns: range) -> Iterator[int]:
        """Yield the batches of an evaluation set and show the progress on a terminal."""
        yield from turns

    def log_message(self, text: str) -> None:
        """Print a line and append it to the log."""

    def log_step(self, step: int, metrics: StepMetrics) -> None:
        """Record the metrics of a step; `step` counts completed steps."""

    def flush(self) -> None:
        """Write the pending record, if there is one."""

    def log_config(self, text: str, flat_config: Mapping[str, SettingValue]) -> None:
        """Log the recipe, as YAML and as flat keys."""

    def log_identities(
        self, step: int, vectors: NDArray[np.float32], names: list[str], images: list[ImageArray]
    ) -> None:
        """Log embeddings `[n, D]` with the identity and the image of each."""

    def log_image(self, name: str, image: ImageArray, step: int) -> None:
        """Log an RGB image of the step."""

    def log_evaluation(
        self, step: int, sets: Sequence[EvaluationSet], embeddings: Embeddings
    ) -> dict[str, Scores]:
        """Evaluate the embeddings of all sets and log the scores.

        Returns:
            Scores of each set on rank 0; an empty dict on the other ranks.
        """
        return {}

    def has_scores(self, step: int) -> bool:
        """Return True on rank 0 if the metrics contain an evaluation after `step` steps."""
        return False

    def log_checkpoint(self, result: SaveResult) -> None:
        """Log the result of a checkpoint save."""

    def write_summary(self, step: int, flat_config: Mapping[str, SettingValue]) -> None:
        """Write summary.json and the plot of the run, and log the final scores."""


class RankLogger(RunLogger):
    """Run logger of the ranks other than 0, which sends their section times to rank 0.

    Args:
        progress: Length of the run.
        log_every: Steps between two records of rank 0.
        device: Device of the steps.
        rank_times: Exchange of section times.
    """

    def __init__(
        self, progress: RunProgress, *, log_every: int, device: torch.device, rank_times: RankTimes
    ) -> None:
        self._progress, self._log_every, self._rank_times = progress, log_every, rank_times
        self._latest_step = progress.start_step  # latest step whose times were taken
        self._marks: timing.Marks | None = None  # of the steps up to that one, until they are sent
        self._num_steps = 0
        self._resources = ExitStack()
        self._timeline = self._resources.enter_context(timing.use_timeline(device))

    @override
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.close()

    @override
    def pause_timing(self) -> AbstractContextManager[None]:
        return self._timeline.pause()

    @override
    def time_evaluation(self) -> AbstractContextManager[None]:
        return self._timeline.pause()

    @override
    def log_step(self, step: int, metrics: StepMetrics) -> None:
        if self._marks is not None:
            seconds = timing.Timeline.seconds_of(self._marks)
            self._rank_times.exchange(self._latest_step, self._num_steps, seconds)
            self._marks = None
        if self._progress.is_logged(step, self._log_every):
            self._marks, self._num_steps = self._timeline.take_marks(), step - self._latest_step
            self._latest_step = step
