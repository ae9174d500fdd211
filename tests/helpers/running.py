"""A launcher whose run is at its steps, for tests that stop and kill it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.faces import write_pack, write_pairs

RECIPE = """
data: {path: PACK, num_workers: 1}
backbone: {width: 4, depths: [1, 1], input_size: 32, embedding_size: 16}
train: {length: 100000, global_batch_size: 12}
head: {sample_rate: 0.5}
log: {every: 5}
device: cpu
output: OUTPUT
"""


def short_recipe(folder: Path, num_workers: int = 0) -> Path:
    """Write a pack and the recipe of a run of three steps; return the path of the recipe."""
    write_pack(folder / "pack", 5, 4)
    (folder / "recipe.yaml").write_text(
        f"data: {{path: {folder}/pack, num_workers: {num_workers}}}\n"
        "backbone: {width: 4, depths: [1, 1], input_size: 32, embedding_size: 16}\n"
        f"train: {{length: 3, global_batch_size: 12}}\ndevice: cpu\noutput: {folder}/output\n"
    )
    return folder / "recipe.yaml"


def recipe_in(folder: Path) -> Path:
    """A recipe of a run that does not end by itself, and its pack."""
    write_pack(folder / "pack", 20, 4)
    write_pairs(folder / "pack/some.bin")
    text = RECIPE.replace("PACK", str(folder / "pack")).replace("OUTPUT", str(folder / "output"))
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


class Running:
    """A launcher whose ranks are at their steps."""

    def __init__(self, process: subprocess.Popen[str], temporary: Path) -> None:
        self.process, self.temporary = process, temporary
        self.ranks = [pid for pid in children(process.pid) if "partialfc.train" in command_of(pid)]

    def ended(self, seconds: float = 150) -> tuple[int, list[str], str]:
        """Exit code, the lines on stdout since, and stderr."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out.splitlines(), err


@contextmanager
def started(recipe: Path, *arguments: object, lines: int = 3) -> Iterator[Running]:
    temporary = recipe.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "partialfc", "train", str(recipe), *map(str, arguments)]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=listen,
    ) as process:
        limit = threading.Timer(400, process.kill)  # a line that never comes is a failure, not a wait
        limit.start()
        try:
            for line in process.stdout:
                lines -= line.startswith("step ") and "loss" in line
                if not lines:
                    break
            yield Running(process, temporary)
        finally:
            limit.cancel()
            process.kill()


def listen() -> None:
    """Signals that these tests are run without, as in the background of a shell, or under nohup, are heard."""
    for one in (signal.SIGINT, signal.SIGHUP):
        signal.signal(one, signal.SIG_DFL)


def exited(pid: int, seconds: float = 7) -> bool:
    """Return True if a process that is no child of this one exits within some seconds."""
    limit = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    return not Path(f"/proc/{pid}").exists()


def children(pid: int) -> list[int]:
    """Of a process; none where it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def command_of(pid: int) -> str:
    """Empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
