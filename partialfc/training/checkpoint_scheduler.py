"""Schedule of checkpoints."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from partialfc.config import CheckpointConfig
from partialfc.config.durations import to_seconds, to_steps
from partialfc.errors import InputError
from partialfc.evaluation.sets import Scores
from partialfc.head.storage.host import RowSnapshot
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import CheckpointManager, SaveResult
from partialfc.training import schedule
from partialfc.training.health import DivergenceError, check_replicas
from partialfc.training.run import Run

_FLAG_DELAY = 2  # steps between raising a flag and acting on it


@dataclass
class CheckpointScheduler:
    """Saves the checkpoints of a run when they are due.

    Every method is collective: all ranks must call it in the same order.

    Args:
        run: Run to save.
        checkpoints: Where to save it.
        metadata: Description of the run, stored in each checkpoint.
        on_saved: Called with the result of every save, on every rank.
    """

    run: Run
    checkpoints: CheckpointManager
    metadata: dict[str, Any]
    on_saved: Callable[[SaveResult], None]

    def __post_init__(self) -> None:
        config: CheckpointConfig = self.run.config.checkpoint
        self._interval_seconds = to_seconds(config.every)
        self._interval_steps = (
            0 if self._interval_seconds is not None else to_steps(config.every, self.run.steps_per_epoch)
        )
        self._set, _, self._score_name = (config.keep_best or "").partition("/")
        self._last_save_time = time.monotonic()  # only the clock of rank 0 is used
        self._last_saved_step = self.run.step  # latest step that was saved or is being saved
        self._due = False
        streamed = self._snapshot_rows()
        self.checkpoints.preallocate(self.run.state(), streamed)
        for rows in streamed.values():
            rows.close()
        self._best_score = self.checkpoints.broadcast_best_score() if self._set else None

    @property
    def is_due(self) -> bool:
        """True on rank 0 if a checkpoint is due by its clock; False on the other ranks."""
        if self._interval_seconds is None or not self.run.dist_ctx.is_main:
            return False
        return time.monotonic() - self._last_save_time >= self._interval_seconds

    def after_step(self, due: bool, elapsed_seconds: float, scores: dict[str, Scores] | None) -> None:
        """Save a checkpoint if it is due.

        Args:
            due: Value of `is_due` on rank 0, one or two steps ago.
            elapsed_seconds: Duration of the run.
            scores: Scores of an evaluation after this step on rank 0, {} on other ranks; None without an
                evaluation.
        """
        self._report(self.checkpoints.poll())
        step, last = self.run.step, self.run.total_steps
        due = due and step > self._last_saved_step + _FLAG_DELAY  # otherwise the flag is older than the save
        self._due |= due or schedule.is_due(step, every=self._interval_steps, last=last)
        score, best = self._agree_on_score(scores)
        if (self._due or best) and self._is_healthy(step == last):
            self._save(elapsed_seconds, score, best)

    def save_and_stop(self, elapsed_seconds: float) -> str:
        """Save a checkpoint, wait until it is on disk, and return a description of the result."""
        if self.run.step > self._last_saved_step:
            self._save(elapsed_seconds, None, best=False)
        problem = self.wait()
        return f"checkpoint not saved: {problem}" if problem else "checkpoint saved"

    def wait(self) -> str | None:
        """Wait for the pending save and return its problem, if any."""
        outcome = self.checkpoints.wait()
        self._report(outcome)
        return outcome.problem if outcome else None

    def _save(self, seconds: float, score: float | None, best: bool) -> None:
        run = self.run
        try:
            check_replicas(run.replicas(), run.step, run.dist_ctx)
        except DivergenceError:
            self.wait()  # the pending save is of an earlier step
            raise
        before = self.checkpoints.save(
            run.step,
            run.state(),
            self.metadata,
            elapsed_seconds=seconds,
            streamed=self._snapshot_rows(),
            score=score,
            best=best,
        )
        self._report(before)
        self._last_save_time, self._last_saved_step, self._due = time.monotonic(), run.step, False

    def _snapshot_rows(self) -> dict[str, RowSnapshot]:
        return {f"head.{name}": rows for name, rows in self.run.head.snapshot().items()}

    def _report(self, outcome: SaveResult | None) -> None:
        if outcome is not None:
            self.on_saved(outcome)

    def _is_healthy(self, last: bool) -> bool:
        """Return True if there is no sign of divergence; synchronizes with the device.

        A checkpoint is postponed while steps are skipped, unless it is the last one.
        """
        health, step = self.run.health, self.run.step
        if last:
            return health.find_problem(step, self.run.config.train.max_skipped_steps) is None
        return health.num_skipped == 0

    def _agree_on_score(self, scores: dict[str, Scores] | None) -> tuple[float | None, bool]:
        """Return the score that `keep_best` selects, and whether it is the best so far. Equal on all ranks."""
        if scores is None or not self._set:
            return None, False
        dist_ctx, score = self.run.dist_ctx, None
        with comm.raise_on_all_ranks(dist_ctx):
            if dist_ctx.is_main:
                score = self._find_score(scores)
        score = comm.broadcast_object(score, dist_ctx.host_group)
        if score is None:
            return None, False
        best = self._best_score is None or score > self._best_score
        if best:
            self._best_score = score
        return score, best

    def _find_score(self, scores: dict[str, Scores]) -> float | None:
        """Return the score that `keep_best` names; None if this evaluation did not define it."""
        found = scores.get(self._set, {}).get(self._score_name)
        if self._set not in scores and self._set in {it.name for it in self.run.eval_sets}:
            return None
        if found is None:
            known = [f"{name}/{score}" for name, values in scores.items() for score in values]
            raise InputError(
                f"checkpoint.keep_best: {self._set}/{self._score_name}, expected one of {', '.join(known) or 'none'}"
            )
        return None if math.isnan(found) else found
