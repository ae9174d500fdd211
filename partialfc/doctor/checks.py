"""Sequence of checks, printed by rank 0."""

import time
from collections.abc import Callable
from datetime import timedelta

from partialfc.config import Config
from partialfc.doctor import machines, network, trial
from partialfc.doctor.result import CheckResult
from partialfc.runtime.comm import CollectiveInputError, DistContext

Check = Callable[[Config, DistContext], CheckResult]

_CHECKS: dict[str, Check] = {
    "versions": machines.check_versions,
    "devices": machines.check_devices,
    "network": network.check_network,
    "head": trial.try_head,
    "loss": trial.loss,
    "pack": trial.try_pack,
    "output": trial.try_output,
    "steps": trial.try_steps,
}


def run_checks(config: Config, dist_ctx: DistContext) -> list[str]:
    """Run and print all checks; return the problems, one line each, equal on all ranks.

    A check that fails is a problem, and the next ones follow.

    Returns:
        Problems.
    """
    problems: list[str] = []
    began = time.monotonic()
    for name, look in _CHECKS.items():
        try:
            found = look(config, dist_ctx)
        except CollectiveInputError as error:
            found = CheckResult([], [str(error)])
        problems += [f"{name}: {it}" for it in found.problems]
        if dist_ctx.is_main:
            _print_result(name, found)
    if dist_ctx.is_main:
        taken = timedelta(seconds=round(time.monotonic() - began))
        verdict = f"{len(problems)} problem(s)" if problems else "no problems found"
        print(f"{verdict} in {taken}", flush=True)
    return problems


def _print_result(name: str, result: CheckResult) -> None:
    lines = [*result.lines, *(f"PROBLEM {it}" for it in result.problems)]
    for place, line in enumerate(lines):
        print(f"{name if not place else '':10} {line}", flush=True)
