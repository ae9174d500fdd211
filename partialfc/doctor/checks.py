"""Sequence of checks, printed by rank 0."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta

from partialfc.config import Config
from partialfc.doctor import acceptance, machines, network, trial
from partialfc.doctor.result import CheckResult
from partialfc.runtime.comm import CollectiveInputError, DistContext

Check = Callable[[Config, DistContext], CheckResult]

CHECKS: dict[str, Check] = {
    "versions": machines.check_versions,
    "devices": machines.check_devices,
    "network": network.check_network,
    "head": trial.try_head,
    "loss": trial.loss,
    "pack": trial.try_pack,
    "output": trial.try_output,
    "steps": trial.try_steps,
}
ACCEPTANCE_CHECKS: dict[str, Check] = {
    "repeats": acceptance.check_repeatability,
    "head speed": acceptance.measure_head,
    "loader": acceptance.measure_loader,
}


def run_checks(
    config: Config, dist_ctx: DistContext, checks: Mapping[str, Check] = CHECKS
) -> dict[str, CheckResult]:
    """Run and print checks; a check that fails is a problem, and the next ones follow.

    Returns:
        Results by name, equal on all ranks.
    """
    results = {}
    began = time.monotonic()
    for name, look in checks.items():
        try:
            results[name] = look(config, dist_ctx)
        except CollectiveInputError as error:
            results[name] = CheckResult([], [str(error)])
        if dist_ctx.is_main:
            print_result(name, results[name])
    if dist_ctx.is_main:
        taken, problems = timedelta(seconds=round(time.monotonic() - began)), list_problems(results)
        verdict = f"{len(problems)} problem(s)" if problems else "no problems found"
        print(f"{verdict} in {taken}", flush=True)
    return results


def list_problems(results: Mapping[str, CheckResult]) -> list[str]:
    """Return the problems, one line each."""
    return [f"{name}: {it}" for name, result in results.items() for it in result.problems]


def print_result(name: str, result: CheckResult) -> None:
    """Print the lines and problems of a check."""
    lines = [*result.lines, *(f"PROBLEM {it}" for it in result.problems)]
    for place, line in enumerate(lines):
        print(f"{name if not place else '':10} {line}", flush=True)
