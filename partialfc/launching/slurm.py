"""Runs as SLURM jobs: one launcher per node. A batch script can request that its job requeues itself.

A job ends by its time limit, of which SLURM notifies the batch script by SIGUSR1. It also ends by preemption,
`scancel` or `scontrol requeue`, of which SLURM notifies the launchers by SIGTERM. In each case the ranks save
and exit with EXIT_STOPPED.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

from partialfc.errors import InputError
from partialfc.launching.launcher import LaunchRequest
from partialfc.runtime.exit_codes import EXIT_STOPPED
from partialfc.runtime.files import SUMMARY_FILE

_QUERY_WAITS = (1, 5)  # seconds before a failed query is repeated
_REQUEUE_WAIT = 60  # seconds for SLURM to end a batch script that has requeued its job
# Signals that SLURM or a user sends to the batch script only.
_FORWARDED_SIGNALS = (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


# Task counts of the job, which a step with one launcher per node must not inherit.
_TASK_COUNTS = ("SLURM_NTASKS_PER_NODE", "SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_TRES_PER_TASK")


def in_allocation() -> bool:
    """Return True in a job outside its steps: a batch script, or a shell or notebook within an allocation."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ


def run_job(request: LaunchRequest) -> int:
    """Validate the recipe, run a launcher on each node of the job, and return the exit code.

    Only a batch script that requests it requeues its job, not a shell or notebook in an allocation.

    Returns:
        Exit code.

    Raises:
        InputError: If the recipe or the job is invalid.
    """
    if int(os.environ.get("SLURM_HET_SIZE", "1")) > 1:
        raise InputError(
            f"SLURM: expected a job of one component, got a heterogeneous job of {os.environ['SLURM_HET_SIZE']}; "
            "submit the run without a colon between its options"
        )
    job, nodes = job_name(os.environ), int(os.environ["SLURM_NNODES"])
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    config, _ = replace(request, nodes=nodes).validate()  # once, before every node reports the same error
    endpoint = f"{_first_node()}:{_port()}"
    run_id = (
        f"{job}.{restarts}.{uuid.uuid4().hex[:8]}"  # another cluster may have the same job, and the same port
    )
    everywhere = replace(request, nodes=nodes, endpoint=endpoint, run_id=run_id)
    code = _run_launchers(everywhere.to_arguments(), job, nodes, batch=request.requeue)
    if request.command != "train":
        return code
    if code == 0 and not (Path(config.output) / SUMMARY_FILE).exists():
        _print_error("a launcher was killed before the run ended")  # srun reports 0 in this case
        code = 1
    if code == EXIT_STOPPED and request.requeue:
        requeue(config.launch.max_requeues)
    return code


def job_name(environment: Mapping[str, str]) -> str:
    """Return the name of this job for SLURM's commands: for an array, this task only."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def _run_launchers(arguments: Sequence[str], job: str, nodes: int, *, batch: bool) -> int:
    """Return the exit code of srun, which is the largest of the launchers'."""
    step = f"partialfc-{uuid.uuid4().hex[:8]}"
    command = [
        *("srun", "--kill-on-bad-exit=1", f"--job-name={step}", "--ntasks-per-node=1", f"--ntasks={nodes}"),
        *_cpus(),
        *(sys.executable, "-m", "partialfc", *arguments),
    ]
    for one in _FORWARDED_SIGNALS:
        signal.signal(one, partial(_forward_signal, job, step))
    # SLURM sends it to the launchers of a batch job, too; in a shell, a user sent it.
    signal.signal(signal.SIGTERM, _ignore if batch else partial(_forward_signal, job, step))
    environment = {name: value for name, value in os.environ.items() if name not in _TASK_COUNTS}
    # Otherwise every end of a job would print warnings about lost processes.
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Protected from a terminal's Ctrl-C, which would end srun, and with it the launchers, before they have
    # saved.
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0).wait()


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing; unlike SIG_IGN, srun does not inherit this."""


def _cpus() -> list[str]:
    """Return srun's option for the CPUs of a launcher, which are not inherited: all CPUs of the job on a node."""
    each, tasks = os.environ.get("SLURM_CPUS_PER_TASK"), os.environ.get("SLURM_NTASKS_PER_NODE", "1")
    return [f"--cpus-per-task={int(each) * int(tasks)}"] if each else []


def _forward_signal(job: str, step: str, number: int, frame: FrameType | None) -> None:
    """Send a signal to the launchers; not to srun, which would kill them, nor to other steps of the job."""
    command = ["squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i %j"]
    listed = _query(command)
    for line in listed.splitlines():
        identifier, _, name = line.strip().partition(" ")
        if name == step:
            subprocess.run(["scancel", f"--signal={signal.Signals(number).name}", identifier], check=False)


def requeue(limit: int) -> None:
    """Requeue this job, at most `limit` times, unless it was canceled or requeued by a user."""
    job, restarts = job_name(os.environ), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if _scontrol_field("job", job, "JobState") != "RUNNING":
        return
    if restarts >= limit:
        _print_error(f"not requeued: launch.max_requeues is {limit}")
        return
    _print_error(f"requeued ({restarts + 1} of at most {limit})")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # SLURM ends this process by it
    if subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0:
        time.sleep(_REQUEUE_WAIT)


def _first_node() -> str:
    """Return the name of the first node, or its address if the name does not resolve."""
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return _scontrol_field("node", name, "NodeAddr") or name
    return name


def _port() -> str:
    job = int(os.environ["SLURM_JOB_ID"])  # differs between the tasks of an array
    return os.environ.get("MASTER_PORT", str(20_000 + job % 10_000))


def _scontrol_field(kind: str, name: str, key: str) -> str | None:
    """Return a field of SLURM's description of a job or node."""
    command = ["scontrol", "--oneliner", "show", kind, name]
    text = _query(command)
    found = re.search(rf"\b{key}=(\S+)", text)
    return found[1] if found else None


def _query(command: Sequence[str]) -> str:
    """Return the output of a query, repeated if it fails, as it does while SLURM is overloaded or restarted."""
    for wait in (*_QUERY_WAITS, None):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode == 0 or wait is None:
            break
        time.sleep(wait)
    return done.stdout


def _print_error(text: str) -> None:
    print(time.strftime("%F %T"), text, file=sys.stderr, flush=True)
