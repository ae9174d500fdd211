"""Prediction of how long a run takes, from its first steps and one evaluation."""

import time
from datetime import timedelta

from partialfc.config import Config
from partialfc.config.durations import to_steps
from partialfc.doctor.result import CheckResult
from partialfc.doctor.trial import run_trial_steps, trial_run
from partialfc.runtime import comm
from partialfc.runtime.comm import DistContext
from partialfc.training.run import Run


def predict_duration(config: Config, dist_ctx: DistContext) -> CheckResult:
    """Run some steps and an evaluation, and predict the duration of the whole run."""
    with trial_run(config, dist_ctx) as run:
        taken, seconds = run_trial_steps(run)
        if not taken:
            return CheckResult(["train.length: no steps to measure"])
        step, evaluation = seconds / taken, _time_evaluation(run)
        total, evaluations = run.total_steps, _num_evaluations(run)
    speed = config.train.global_batch_size / step
    whole = total * step + evaluations * evaluation
    lines = [
        f"{taken} steps: {1000 * step:.1f} ms each, {speed:.0f} images/s; {total} steps take {_format(total * step)}"
    ]
    if evaluations:
        lines.append(
            f"an evaluation: {evaluation:.1f} s; {evaluations} of them take {_format(evaluations * evaluation)}"
        )
    lines.append(f"the run takes about {_format(whole)} on {dist_ctx.world_size} rank(s)")
    return CheckResult(
        lines, values={"step_seconds": step, "evaluation_seconds": evaluation, "seconds": whole}
    )


def _time_evaluation(run: Run) -> float:
    """Return the seconds in which all ranks embed the images of all evaluation sets, of the slowest rank."""
    began = time.perf_counter()
    run.embed_sets(lambda: 0, lambda _, turns: iter(turns))
    return max(comm.all_gather_object(time.perf_counter() - began, run.dist_ctx.host_group))


def _num_evaluations(run: Run) -> int:
    """Return the number of evaluations of a run: before training, in `evaluation.every` steps, and at the end."""
    if not run.eval_sets:
        return 0
    every, total = to_steps(run.config.evaluation.every, run.steps_per_epoch), run.total_steps
    return 1 + (-(-total // every) if every else 1)


def _format(seconds: float) -> timedelta:
    return timedelta(seconds=round(seconds))
