"""Execution of a sweep: its runs one after another, as `partialfc train` would run them, without the finished ones."""

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
    """Part of the grid for this process: every `count`-th run, starting from number `index`."""

    index: int = 0
    count: int = 1


def parse_task(task: str | None) -> TaskShard:
    """Return the part for a task `I/N`, counted from 0, or for a task of a SLURM job array; otherwise all runs.

    Raises:
        InputError: If there is no such task.
    """
    if task is None and "SLURM_ARRAY_TASK_ID" in os.environ:
        return _shard_of_slurm_array()
    if task is None:
        return TaskShard()
    index, _, count = task.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise InputError(f"--shard {task}: expected I/N, with I from 0 to N - 1")
    return TaskShard(int(index), int(count))


def _shard_of_slurm_array() -> TaskShard:
    this, least, most, step, count = (
        int(os.environ[f"SLURM_ARRAY_TASK_{it}"]) for it in ("ID", "MIN", "MAX", "STEP", "COUNT")
    )
    if (most - least) // step + 1 != count:  # a listing with gaps would omit runs
        raise InputError(f"a job array of {count} tasks from {least} to {most}; expected --array=0-N")
    return TaskShard((this - least) // step, count)


def require_same_configs(grid: Grid, out: Path) -> None:
    """Raise InputError if a finished run in `out` has other settings or another recipe."""
    for point in grid.points:
        folder = out / point.name
        if not (folder / SUMMARY_FILE).exists():
            continue
        before, now = load_config(folder / "recipe.yaml"), load_config(grid.recipe, grid.overrides(point))
        if now.train.micro_batch_size is None:  # chosen at the start of the run
            train = msgspec.structs.replace(now.train, micro_batch_size=before.train.micro_batch_size)
            now = msgspec.structs.replace(now, train=train)
        if changed := diff_configs(before, now):
            raise InputError(
                f"{folder}: written with a different config: {'; '.join(changed)}; choose another --out"
            )


def run_all(
    grid: Grid, out: Path, shard: TaskShard, ranks: int | None, print_line: Callable[[str], None]
) -> int:
    """Run the unfinished runs of the shard.

    The folder of a run is out/NAME; its output is appended to out/logs/NAME.log. After a failure, the other
    runs are still started.

    Returns:
        0, EXIT_STOPPED if a signal stopped them, or the exit code of the first failure.
    """
    code, running = 0, _CurrentRun()
    with handle_stop_signals(running.stop):
        for number, point in list(enumerate(grid.points))[shard.index :: shard.count]:
            place = f"{number + 1} of {len(grid.points)}: {point.name}"
            if (out / point.name / SUMMARY_FILE).exists():
                print_line(f"{place}: already finished")
                continue
            print_line(place)
            ended = running.run(_command(grid, point, out, ranks), _log_path(out, point))
            if running.stopped:
                print_line(f"{place}: stopped; rerun the command to resume")
                return EXIT_STOPPED
            if ended:
                print_line(f"{place}: exit code {ended}, see {_log_path(out, point)}")
                code = code or ended
    return code


class _CurrentRun:
    """Current run, and whether a signal has stopped the sweep."""

    def __init__(self) -> None:
        self.stopped = False
        self._child: subprocess.Popen[bytes] | None = None

    def run(self, command: list[str], log: Path) -> int:
        """Run a command and return its exit code."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as writing:
            # own process group: Ctrl-C reaches it once, from here
            self._child = subprocess.Popen(command, stdout=writing, stderr=subprocess.STDOUT, process_group=0)
            if self.stopped:
                self._child.terminate()
            code = self._child.wait()
        return code if code >= 0 else 128 - code  # shell convention

    def stop(self, number: int, _: FrameType | None) -> None:
        """Forward a signal."""
        self.stopped = True
        if self._child is not None:
            self._child.send_signal(number)


def _command(grid: Grid, point: Point, out: Path, ranks: int | None) -> list[str]:
    command = [sys.executable, "-m", "partialfc", "train", grid.recipe, *grid.overrides(point)]
    return [*command, f"output={out / point.name}", *([] if ranks is None else [f"--ranks={ranks}"])]


def _log_path(out: Path, point: Point) -> Path:
    return out / "logs" / f"{point.name}.log"
