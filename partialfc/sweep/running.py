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
    code, running = 0, _Running()
    with heard_by(running.stop):
        for number, point in enumerate(grid.points):
            if number % share.count != share.index:
                continue
            place = f"{number + 1} of {len(grid.points)}: {point.name}"
            if (out / point.name / SUMMARY).exists():
                say(f"{place}: finished before")
                continue
            say(place)
            ended = running.run(_command(grid, point, out, ranks), _log(out, point))
            if running.stopped:
                say(f"{place}: stopped; the same call goes on")
                return STOPPED
            if ended:
                say(f"{place}: exit code {ended}, see {_log(out, point)}")
                code = code or ended
    return code


class _Running:
    """The run under way, and whether a signal has ended it, and all that would come."""

    def __init__(self) -> None:
        self.stopped = False
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, command: list[str], log: Path) -> int:
        """Its exit code."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as writing:
            # a group of its own: a Ctrl-C reaches it once, from here
            self._child = subprocess.Popen(command, stdout=writing, stderr=subprocess.STDOUT, process_group=0)
            if self.stopped:
                self._child.terminate()
            return self._child.wait()

    def stop(self, number: int, _: FrameType | None) -> None:
        """Pass a signal on."""
        self.stopped = True
        if self._child is not None:
            self._child.send_signal(number)


def _command(grid: Grid, point: Point, out: Path, ranks: int | None) -> list[str]:
    command = [sys.executable, "-m", "partialfc", "train", grid.recipe, *grid.overrides(point)]
    return [*command, f"output={out / point.name}", *([] if ranks is None else [f"--ranks={ranks}"])]


def _log(out: Path, point: Point) -> Path:
    return out / "logs" / f"{point.name}.log"
