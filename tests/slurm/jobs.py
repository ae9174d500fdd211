"""Jobs of a SLURM that the tests start."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("mini_slurm.sh")
PACKAGES = "slurmd slurmctld slurm-client munge"
SETTINGS = [
    "device=cpu",
    "backbone={width: 4, depths: [1, 1], input_size: 32, embedding_size: 16}",
    "train={length: 6, global_batch_size: 12}",
]


ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")


def called(cluster: dict[str, str], folder: Path, *command: str) -> str:
    """What a command of SLURM prints. A query that a busy controller does not answer is repeated."""
    for attempt in range(4):
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=cluster, cwd=folder, timeout=60
        )
        if done.returncode == 0 or "show" not in command:
            break
        time.sleep(attempt)
    done.check_returncode()
    return done.stdout


class Job:
    """A job of two nodes that runs launch.sh."""

    def __init__(
        self,
        cluster: dict[str, str],
        log: Path,
        *arguments: object,
        options: tuple[str, ...] = (),
        folder: Path = ROOT,
    ) -> None:
        self._cluster, self._log, self._folder = cluster, log, folder
        self.number = self._called(
            "sbatch",
            "--parsable",
            "--nodes=2",
            f"--output={log}",
            *options,
            str(ROOT / "launch.sh"),
            *map(str, arguments),
        ).strip()

    def _called(self, *command: str) -> str:
        return called(self._cluster, self._folder, *command)

    def signal(self, *options: str) -> None:
        self._called("scancel", *options, self.number)

    def start_now(self) -> None:
        """A job that queues itself again waits two minutes."""
        time.sleep(
            2
        )  # SLURM has revoked the credential of a job that starts in the second in which it was requeued
        self._called("scontrol", "update", f"JobId={self.number}", "StartTime=now")

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def shown(self) -> tuple[str, str]:
        """State and exit code."""
        text = self._called("scontrol", "show", "job", self.number)
        state, code = re.search(r"JobState=(\w+)", text), re.search(r"ExitCode=(\S+)", text)
        assert state and code, text
        return state[1], code[1]

    def wait(self, *states: str) -> tuple[str, str]:
        """Until it is in one of the states."""
        return self._until(lambda: self.shown()[0] in states) or self.shown()

    def wait_for(self, text: str) -> None:
        """Until the log says so."""
        self._until(lambda: text in self.log)

    def _until(self, condition: Callable[[], bool]) -> None:
        for _ in range(1500):
            if condition():
                return
            time.sleep(0.2)
        raise TimeoutError(f"job {self.number} is {self.shown()}: {self.log}")


def job(cluster: dict[str, str], log: Path, *arguments: object) -> tuple[str, str]:
    """State and exit code of a job, at its end."""
    return Job(cluster, log, *arguments).wait(*ENDED)
