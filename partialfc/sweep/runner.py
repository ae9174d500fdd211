"""The runs of a sweep, one after another: each as `partialfc train` would run it, those that have finished not again."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec

from partialfc.config import load_config
from partialfc.config.provenance import diff_configs
from partialfc.errors import InputError
from partialfc.runtime.exit_codes import EXIT_STOPPED
from partialfc.runtime.files import SUMMARY_FILE
from partialfc.runtime.process.signals import handle_stop_signals
from partialfc.sweep.grid import Grid, Point


@dataclass(frozen=True)
class TaskShard:
    """Which runs of the grid are this process's: every `count`-th, from number `index`."""

    index: int = 0
    count: int = 1


def parse_task(task: str | None) -> TaskShard:
    """Of a task `I/N`, counted from 0; without, of a job array of SLURM's; else all. InputError where it is none of N."""
    if task is None and "SLURM_ARRAY_TASK_ID" in os.environ:
        return _shard_of_slurm_array()
    if task is None:
        return TaskShard()
    index, _, count = task.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise InputError(f"--task {task}: wanted I/N, with I from 0 to N - 1")
    return TaskShard(int(index), int(count))


def _shard_of_slurm_array() -> TaskShard:
    this, least, most, step, count = (
        int(os.environ[f"SLURM_ARRAY_TASK_{it}"]) for it in ("ID", "MIN", "MAX", "STEP", "COUNT")
    )
    if (most - least) // step + 1 != count:  # a listing with gaps: runs would be left out
        raise InputError(f"a job array of {count} tasks from {least} to {most}; wanted --array=0-N")
    return TaskShard((this - least) // step, count)


def require_same_configs(grid: Grid, out: Path) -> None:
    """InputError where a run that has finished in `out` was one of other settings, or another recipe."""
    for point in grid.points:
        folder = out / point.name
        if not (folder / SUMMARY_FILE).exists():
            continue
        before, now = load_config(folder / "recipe.yaml"), load_config(grid.recipe, grid.overrides(point))
        if now.train.micro_batch_size is None:  # which the run has chosen
            train = msgspec.structs.replace(now.train, micro_batch_size=before.train.micro_batch_size)
            now = msgspec.structs.replace(now, train=train)
        if changed := diff_configs(before, now):
            raise InputError(
                f"{folder}: made with other settings: {'; '.join(changed)}; wanted another --out"
            )


def run_all(
    grid: Grid, out: Path, shard: TaskShard, ranks: int | None, print_line: Callable[[str], None]
) -> int:
    """Run the share's runs that have not finished; returns 0, STOPPED where a signal ended them, or the exit code of the
    first run that failed, after which the others were run all the same.

    A run's folder is out/NAME, what it prints is added to out/logs/NAME.log.
    """
    code, running = 0, _CurrentRun()
    with handle_stop_signals(running.stop):
        for number, point in list(enumerate(grid.points))[shard.index :: shard.count]:
            place = f"{number + 1} of {len(grid.points)}: {point.name}"
            if (out / point.name / SUMMARY_FILE).exists():
                print_line(f"{place}: finished before")
                continue
            print_line(place)
            ended = running.run(_command(grid, point, out, ranks), _log_path(out, point))
            if running.stopped:
                print_line(f"{place}: stopped; the same call goes on")
                return EXIT_STOPPED
            if ended:
                print_line(f"{place}: exit code {ended}, see {_log_path(out, point)}")
                code = code or ended
    return code


class _CurrentRun:
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
            code = self._child.wait()
        return code if code >= 0 else 128 - code  # as a shell tells of a signal

    def stop(self, number: int, _: FrameType | None) -> None:
        """Pass a signal on."""
        self.stopped = True
        if self._child is not None:
            self._child.send_signal(number)


def _command(grid: Grid, point: Point, out: Path, ranks: int | None) -> list[str]:
    command = [sys.executable, "-m", "partialfc", "train", grid.recipe, *grid.overrides(point)]
    return [*command, f"output={out / point.name}", *([] if ranks is None else [f"--ranks={ranks}"])]


def _log_path(out: Path, point: Point) -> Path:
    return out / "logs" / f"{point.name}.log"
