"""One look after the other, told by the first rank."""

import time
from collections.abc import Callable
from datetime import timedelta

from partialfc.config import Config
from partialfc.doctor import machines, network, trial
from partialfc.doctor.result import Finding
from partialfc.runtime.comm import CollectiveInputError, Ranks

Look = Callable[[Config, Ranks], Finding]

_LOOKS: dict[str, Look] = {
    "versions": machines.versions,
    "devices": machines.devices,
    "network": network.network,
    "head": trial.head,
    "loss": trial.loss,
    "pack": trial.pack,
    "output": trial.output,
    "steps": trial.steps,
}


def examined(config: Config, ranks: Ranks) -> list[str]:
    """What is wrong, a line each, equal on all ranks; the first one prints it all. A look that cannot be had is a problem,
    and the next ones follow.
    """
    problems: list[str] = []
    began = time.monotonic()
    for name, look in _LOOKS.items():
        try:
            found = look(config, ranks)
        except CollectiveInputError as error:
            found = Finding([], [str(error)])
        problems += [f"{name}: {it}" for it in found.problems]
        if ranks.first:
            _tell(name, found)
    if ranks.first:
        taken = timedelta(seconds=round(time.monotonic() - began))
        verdict = f"{len(problems)} problem(s)" if problems else "nothing wrong"
        print(f"{verdict}, after {taken}", flush=True)
    return problems


def _tell(name: str, found: Finding) -> None:
    lines = [*found.lines, *(f"PROBLEM {it}" for it in found.problems)]
    for place, line in enumerate(lines):
        print(f"{name if not place else '':10} {line}", flush=True)
