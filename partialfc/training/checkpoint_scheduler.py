"""When a run's checkpoints are due, and what came of them."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from partialfc.config import CheckpointConfig
from partialfc.config.durations import in_seconds, in_steps
from partialfc.errors import InputError
from partialfc.evaluation.sets import Scores
from partialfc.head.storage.host import RowSnapshot
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import Checkpoints, Outcome
from partialfc.training import schedule
from partialfc.training.health import Diverged, check_replicas
from partialfc.training.run import Run

_AHEAD = 2  # steps between a notice and the step after which it is heard


@dataclass
class Saving:
    """All ranks call its methods alike.

    about: what each checkpoint says of the run. tell: called with the outcome of every save, on every rank.
    """

    run: Run
    checkpoints: Checkpoints
    about: dict[str, Any]
    tell: Callable[[Outcome], None]

    def __post_init__(self) -> None:
        config: CheckpointConfig = self.run.config.checkpoint
        self._seconds = in_seconds(config.every)
        self._steps = 0 if self._seconds is not None else in_steps(config.every, self.run.steps_per_epoch)
        self._set, _, self._score_name = (config.keep_best or "").partition("/")
        self._since = time.monotonic()  # of the first rank; the others' clocks are not asked
        self._saved = self.run.step  # the newest step that was saved, or is being saved
        self._due = False
        streamed = self._streamed()
        self.checkpoints.reserve(self.run.state(), streamed)
        for rows in streamed.values():
            rows.close()
        self._best = self.checkpoints.best_score() if self._set else None

    @property
    def notice(self) -> bool:
        """Whether the first rank's clock says that a checkpoint is due; on others never."""
        if self._seconds is None or not self.run.ranks.first:
            return False
        return time.monotonic() - self._since >= self._seconds

    def after_step(self, noticed: bool, seconds: float, scores: dict[str, Scores] | None) -> None:
        """Save where it is due. noticed: what `notice` was on the first rank, a step or two ago; scores: of an evaluation after
        this step, on the first rank; elsewhere {}, and None where there was none.
        """
        self._tell(self.checkpoints.finished())
        step, last = self.run.step, self.run.last_step
        noticed = noticed and step > self._saved + _AHEAD  # else it is of before the save
        self._due |= noticed or schedule.due(step, every=self._steps, last=last)
        score, best = self._scored(scores)
        if (self._due or best) and self._sound(step == last):
            self._save(seconds, score, best)

    def stop(self, seconds: float) -> str:
        """Save now, and return when it is on the disk: what there is to go on from, in words."""
        if self.run.step > self._saved:
            self._save(seconds, None, best=False)
        problem = self.finish()
        return f"not saved: {problem}" if problem else "saved"

    def finish(self) -> str | None:
        """Return when nothing is being written any more: what is wrong with the newest save, if it failed."""
        outcome = self.checkpoints.wait()
        self._tell(outcome)
        return outcome.problem if outcome else None

    def _save(self, seconds: float, score: float | None, best: bool) -> None:
        run = self.run
        try:
            check_replicas(run.replicas(), run.step, run.ranks)
        except Diverged:
            self.finish()  # what is being written is of an earlier step
            raise
        before = self.checkpoints.save(
            run.step,
            run.state(),
            self.about,
            seconds=seconds,
            streamed=self._streamed(),
            score=score,
            best=best,
        )
        self._tell(before)
        self._since, self._saved, self._due = time.monotonic(), run.step, False

    def _streamed(self) -> dict[str, RowSnapshot]:
        return {f"head.{name}": rows for name, rows in self.run.head.snapshot().items()}

    def _tell(self, outcome: Outcome | None) -> None:
        if outcome is not None:
            self.tell(outcome)

    def _sound(self, last: bool) -> bool:
        """Whether there is no sign of divergence. While steps are skipped a checkpoint can wait, unless it is the last. Waits
        for the device.
        """
        health, step = self.run.health, self.run.step
        if last:
            return health.problem(step, self.run.config.train.max_skipped_steps) is None
        return health.skipped == 0

    def _scored(self, scores: dict[str, Scores] | None) -> tuple[float | None, bool]:
        """The score that `keep_best` names, and whether it is the best so far; the same on all ranks."""
        if scores is None or not self._set:
            return None, False
        ranks, score = self.run.ranks, None
        with comm.fail_on_all_ranks(ranks):
            if ranks.first:
                score = self._named(scores)
        score = comm.of_first_rank(score, ranks.host)
        if score is None:
            return None, False
        best = self._best is None or score > self._best
        if best:
            self._best = score
        return score, best

    def _named(self, scores: dict[str, Scores]) -> float | None:
        """Return the score that `keep_best` names; None if this evaluation did not define it."""
        found = scores.get(self._set, {}).get(self._score_name)
        if self._set not in scores and self._set in {it.name for it in self.run.sets}:
            return None
        if found is None:
            known = [f"{name}/{score}" for name, values in scores.items() for score in values]
            raise InputError(
                f"checkpoint.keep_best: {self._set}/{self._score_name}, wanted one of {', '.join(known) or 'none'}"
            )
        return None if math.isnan(found) else found
