"""A run as a SLURM job, for its batch script. One launcher on each node; a job that is stopped queues itself again.

A job comes to its end by a time limit, of which SLURM warns the batch script by SIGUSR1, by preemption, `scancel` or
`scontrol requeue`, of which it tells the launchers by SIGTERM. Each time the ranks save and end with STOPPED.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from partialfc.launching.launcher import Launch
from partialfc.runtime.errors import STOPPED
from partialfc.runtime.files import SUMMARY

_ENDED_BY_SLURM = 60  # seconds in which it ends a batch script that has queued its job again
# Signals that SLURM, or somebody, sends to the batch script alone.
_WARNINGS = (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def in_batch_script() -> bool:
    """Whether this is a job's batch script, and none of the launchers that srun starts for it."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ


def run_job(asked: Launch) -> int:
    """Check the recipe, start a launcher on each node of the job, wait for them; returns the exit code."""
    job, nodes = os.environ["SLURM_JOB_ID"], int(os.environ["SLURM_NNODES"])
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    config, _ = replace(asked, nodes=nodes).checked()  # once, before every node says it
    endpoint = f"{_first_node()}:{_port(job)}"
    everywhere = replace(asked, nodes=nodes, endpoint=endpoint, name=f"{job}.{restarts}")
    code = _launchers(everywhere.arguments())
    if asked.command != "train":
        return code
    if code == 0 and not (Path(config.output) / SUMMARY).exists():
        _say("a launcher was killed before the run had ended")  # srun says 0 then
        code = 1
    nobody_else = _shown("job", job, "JobState") == "RUNNING"  # has cancelled it, or queued it again
    if code == STOPPED and nobody_else:
        _queue_again(job, restarts, config.launch.requeues)
    return code


def _launchers(arguments: Sequence[str]) -> int:
    """The exit code of srun, which is the largest of the launchers'."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")  # which srun does not take over by itself
    command = [
        *("srun", "--kill-on-bad-exit=1", *([f"--cpus-per-task={cpus}"] if cpus else [])),
        *(sys.executable, "-m", "partialfc", *arguments),
    ]
    for one in _WARNINGS:
        signal.signal(one, _pass_on)
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # SLURM has sent it to the launchers, too
    # Else each end of a job warns that other processes are gone.
    environment = {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}
    return subprocess.Popen(command, env=environment).wait()


def _pass_on(number: int, frame: FrameType | None) -> None:
    """To the launchers; never to srun, which would end them at once."""
    subprocess.run(
        ["scancel", f"--signal={signal.Signals(number).name}", os.environ["SLURM_JOB_ID"]], check=False
    )


def _queue_again(job: str, restarts: int, limit: int) -> None:
    if restarts >= limit:
        _say(f"not queued again: launch.requeues is {limit}")
        return
    _say(f"queued again, {restarts + 1} of {limit} times at most")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which SLURM ends this process
    if subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0:
        time.sleep(_ENDED_BY_SLURM)


def _first_node() -> str:
    """Its name, or its address where the name does not resolve."""
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return _shown("node", name, "NodeAddr") or name
    return name


def _port(job: str) -> str:
    return os.environ.get("MASTER_PORT", str(20_000 + int(job) % 10_000))


def _shown(kind: str, name: str, key: str) -> str | None:
    """What SLURM says of a job or a node."""
    command = ["scontrol", "--oneliner", "show", kind, name]
    text = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    found = re.search(rf"\b{key}=(\S+)", text)
    return found[1] if found else None


def _say(text: str) -> None:
    print(time.strftime("%F %T"), text, file=sys.stderr, flush=True)
