"""When a run's checkpoints are due, and what came of them."""

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

_AHEAD = 2  # steps between a notice and the step after which it is heard


@dataclass
class CheckpointScheduler:
    """All ranks call its methods alike.

    about: what each checkpoint says of the run. tell: called with the outcome of every save, on every rank.
    """

    run: Run
    checkpoints: CheckpointManager
    metadata: dict[str, Any]
    on_saved: Callable[[SaveResult], None]

    def __post_init__(self) -> None:
        config: CheckpointConfig = self.run.config.checkpoint
        self._seconds = to_seconds(config.every)
        self._steps = 0 if self._seconds is not None else to_steps(config.every, self.run.steps_per_epoch)
        self._set, _, self._score_name = (config.keep_best or "").partition("/")
        self._since = time.monotonic()  # of the first rank; the others' clocks are not asked
        self._saved = self.run.step  # the newest step that was saved, or is being saved
        self._due = False
        streamed = self._snapshot_rows()
        self.checkpoints.preallocate(self.run.state(), streamed)
        for rows in streamed.values():
            rows.close()
        self._best = self.checkpoints.best_score() if self._set else None

    @property
    def is_due(self) -> bool:
        """Whether the first rank's clock says that a checkpoint is due; on others never."""
        if self._seconds is None or not self.run.dist_ctx.is_main:
            return False
        return time.monotonic() - self._since >= self._seconds

    def after_step(self, due: bool, elapsed_seconds: float, scores: dict[str, Scores] | None) -> None:
        """Save where it is due. noticed: what `is_due` was on the first rank, a step or two ago; scores: of an evaluation after
        this step, on the first rank; elsewhere {}, and None where there was none.
        """
        self._report(self.checkpoints.poll())
        step, last = self.run.step, self.run.total_steps
        due = due and step > self._saved + _AHEAD  # else it is of before the save
        self._due |= due or schedule.is_due(step, every=self._steps, last=last)
        score, best = self._tracked_score(scores)
        if (self._due or best) and self._is_healthy(step == last):
            self._save(elapsed_seconds, score, best)

    def save_and_stop(self, elapsed_seconds: float) -> str:
        """Save now, and return when it is on the disk: what there is to go on from, in words."""
        if self.run.step > self._saved:
            self._save(elapsed_seconds, None, best=False)
        problem = self.wait()
        return f"not saved: {problem}" if problem else "saved"

    def wait(self) -> str | None:
        """Return when nothing is being written any more: what is wrong with the newest save, if it failed."""
        outcome = self.checkpoints.wait()
        self._report(outcome)
        return outcome.problem if outcome else None

    def _save(self, seconds: float, score: float | None, best: bool) -> None:
        run = self.run
        try:
            check_replicas(run.replicas(), run.step, run.dist_ctx)
        except DivergenceError:
            self.wait()  # what is being written is of an earlier step
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
        self._since, self._saved, self._due = time.monotonic(), run.step, False

    def _snapshot_rows(self) -> dict[str, RowSnapshot]:
        return {f"head.{name}": rows for name, rows in self.run.head.snapshot().items()}

    def _report(self, outcome: SaveResult | None) -> None:
        if outcome is not None:
            self.on_saved(outcome)

    def _is_healthy(self, last: bool) -> bool:
        """Whether there is no sign of divergence. While steps are skipped a checkpoint can wait, unless it is the last. Waits
        for the device.
        """
        health, step = self.run.health, self.run.step
        if last:
            return health.find_problem(step, self.run.config.train.max_skipped_steps) is None
        return health.num_skipped == 0

    def _tracked_score(self, scores: dict[str, Scores] | None) -> tuple[float | None, bool]:
        """The score that `keep_best` names, and whether it is the best so far; the same on all ranks."""
        if scores is None or not self._set:
            return None, False
        dist_ctx, score = self.run.dist_ctx, None
        with comm.raise_on_all_ranks(dist_ctx):
            if dist_ctx.is_main:
                score = self._find_score(scores)
        score = comm.broadcast_object(score, dist_ctx.host_group)
        if score is None:
            return None, False
        best = self._best is None or score > self._best
        if best:
            self._best = score
        return score, best

    def _find_score(self, scores: dict[str, Scores]) -> float | None:
        """Return the score that `keep_best` names; None if this evaluation did not define it."""
        found = scores.get(self._set, {}).get(self._score_name)
        if self._set not in scores and self._set in {it.name for it in self.run.eval_sets}:
            return None
        if found is None:
            known = [f"{name}/{score}" for name, values in scores.items() for score in values]
            raise InputError(
                f"checkpoint.keep_best: {self._set}/{self._score_name}, wanted one of {', '.join(known) or 'none'}"
            )
        return None if math.isnan(found) else found
