"""The runs of a sweep, one after another: each as `partialfc train` would run it, those that have finished not again."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from partialfc.errors import InputError
from partialfc.runtime.errors import STOPPED
from partialfc.runtime.files import SUMMARY
from partialfc.runtime.process.signals import heard_by
from partialfc.sweep.grid import Grid, Point


@dataclass(frozen=True)
class Share:
    """Which runs of the grid are this process's: every `count`-th, from number `index`."""

    index: int = 0
    count: int = 1


def share_of(task: str | None) -> Share:
    """Of a task `I/N`, counted from 0; without, of a job array of SLURM's; else all."""
    if task is None and "SLURM_ARRAY_TASK_ID" in os.environ:
        first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", 0))
        return Share(
            int(os.environ["SLURM_ARRAY_TASK_ID"]) - first, int(os.environ["SLURM_ARRAY_TASK_COUNT"])
        )
    if task is None:
        return Share()
    index, _, count = task.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise InputError(f"--task {task}: wanted I/N, with I from 0 to N - 1")
    return Share(int(index), int(count))


def run_all(grid: Grid, out: Path, share: Share, ranks: int | None, say: Callable[[str], None]) -> int:
    """Run the share's runs that have not finished; returns 0, STOPPED where a signal ended them, or the exit code of the
    first run that failed, after which the others were run all the same.

    A run's folder is out/NAME, what it prints is added to out/logs/NAME.log.
    """
    code = 0
    for number, point in enumerate(grid.points):
        if number % share.count != share.index:
            continue
        place = f"{number + 1} of {len(grid.points)}: {point.name}"
        if (out / point.name / SUMMARY).exists():
            say(f"{place}: finished before")
            continue
        say(place)
        ended = _run(grid, point, out, ranks)
        if ended == STOPPED:
            say(f"{place}: stopped; the same call goes on")
            return STOPPED
        if ended:
            say(f"{place}: exit code {ended}, see {_log(out, point)}")
            code = code or ended
    return code


def _run(grid: Grid, point: Point, out: Path, ranks: int | None) -> int:
    log = _log(out, point)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "partialfc", "train", grid.recipe, *grid.overrides(point)]
    command += [f"output={out / point.name}", *([] if ranks is None else [f"--ranks={ranks}"])]
    stopped = False
    with log.open("ab") as writing:
        # a group of its own: a Ctrl-C reaches it once, from here
        child = subprocess.Popen(command, stdout=writing, stderr=subprocess.STDOUT, process_group=0)

        def pass_on(number: int, _: FrameType | None) -> None:
            nonlocal stopped
            stopped = True
            child.send_signal(number)

        with heard_by(pass_on):
            code = child.wait()
    return STOPPED if stopped else code


def _log(out: Path, point: Point) -> Path:
    return out / "logs" / f"{point.name}.log"
