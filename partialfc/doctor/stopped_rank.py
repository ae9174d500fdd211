"""Check that a rank which stops in a step ends the run, and is named."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from partialfc.doctor.result import CheckResult
from partialfc.runtime.exit_codes import EXIT_RANK_LOST

_STEP_TIMEOUT = 15  # seconds without progress, of the trial
_LIMIT = 180  # seconds of the trial
_RECIPE = """
data: {{path: {folder}/pack, num_workers: 0, synthetic: {{identities: 20, images: 4, unseen: 20, pairs: 20, size: 32}}}}
backbone: {{name: iresnet_tiny, width: 4, depths: [1, 1], input_size: 32, embedding_size: 16}}
train: {{length: 1000000, global_batch_size: {batch}}}
checkpoint: {{every: 0}}
log: {{every: 1, loggers: []}}
launch: {{step_timeout: {timeout} seconds}}
device: {device}
output: {folder}/output
"""


def check_stopped_rank(device: str, ranks: int) -> CheckResult:
    """Train a small network on this machine, stop one of its ranks by SIGSTOP, and read what the run reports."""
    if ranks < 2:
        return CheckResult(["one rank: no other rank would wait for it"])
    if sys.platform != "linux":
        return CheckResult(["not checked: requires Linux"])
    with tempfile.TemporaryDirectory(prefix="partialfc-doctor-", ignore_cleanup_errors=True) as folder:
        recipe = Path(folder, "recipe.yaml")
        recipe.write_text(
            _RECIPE.format(folder=folder, batch=4 * ranks, timeout=_STEP_TIMEOUT, device=device)
        )
        command = [sys.executable, "-m", "partialfc", "train", str(recipe), "--ranks", str(ranks)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
            try:
                return _stop_and_wait(launcher, ranks - 1)
            except subprocess.TimeoutExpired:
                return CheckResult([], [f"the run still waits {_LIMIT} s after rank {ranks - 1} stopped"])
            finally:
                launcher.kill()


def _stop_and_wait(launcher: "subprocess.Popen[str]", stopped: int) -> CheckResult:
    assert launcher.stdout is not None
    for line in launcher.stdout:
        if line.startswith("step 3/"):
            break
    pid = _find_rank(launcher.pid, stopped)
    if pid is None:
        _, error = launcher.communicate(timeout=_LIMIT)
        last = (error.strip().splitlines() or ["no message"])[-1]
        return CheckResult([], [f"the trial ended before rank {stopped} was stopped: {last}"])
    os.kill(pid, signal.SIGSTOP)
    _, error = launcher.communicate(timeout=_LIMIT)
    named = re.search(rf"rank {stopped} on \S+ stalled at step \d+.*", error)
    if launcher.returncode == EXIT_RANK_LOST and named:
        return CheckResult([f"rank {stopped} was stopped: the run ended and named it: {named[0]}"])
    last = (error.strip().splitlines() or ["no message"])[-1]
    return CheckResult(
        [],
        [
            f"rank {stopped} was stopped: exit code {launcher.returncode}, expected {EXIT_RANK_LOST} and its name: {last}"
        ],
    )


def _find_rank(launcher: int, rank: int) -> int | None:
    """Return the process id of a rank of a launcher, from Linux's /proc; None if it has ended."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return int(child)
    return None
