"""launch.sh as a job of a real SLURM with two nodes on this machine; and two launchers by hand."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.ports import free_ports
from jobs import ENDED, ROOT, SETTINGS, Job, called, job


@pytest.mark.slurm
def test_a_job_on_two_nodes_trains_from_any_folder(cluster, folder):
    """Its paths are relative to where it was submitted."""
    output = folder / "output"
    arguments = ["--ranks", 1, "recipe.yaml", *SETTINGS, "output=output"]
    ended = Job(cluster, folder / "log", *arguments, folder=folder).wait(*ENDED)
    log = (folder / "log").read_text()
    assert ended == ("COMPLETED", "0:0"), log
    assert "on 2 rank(s) of n1, n2" in log and "step 6/6" in log
    assert json.loads((output / "summary.json").read_text())["steps"] == 6


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["loss.name=nonsense"], "loss.name: 'nonsense', expected one of"),
        (["train.global_batch_size=13"], "train.global_batch_size 13 cannot be split over 2 ranks"),
        (["data.path=/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_input_of_a_job_is_one_line_and_exit_code_2(cluster, folder, changes, message):
    arguments = ["--ranks", 1, folder / "recipe.yaml", *SETTINGS, *changes, f"output={folder / 'output'}"]
    ended = job(cluster, folder / "log", *arguments)
    slurms = ("srun: ", "slurmstepd")  # its own lines
    told = [line for line in (folder / "log").read_text().splitlines() if not line.startswith(slurms)]
    assert ended == ("FAILED", "2:0"), told
    assert len(told) == 1 and message in told[0], told


LONG = ["train={length: 200, global_batch_size: 12}", "log.every=20"]


def long_job(cluster: dict[str, str], folder: Path, *changes: str, options: tuple[str, ...] = ()) -> Job:
    """A job that is at its steps: some ten seconds long."""
    arguments = ["--ranks", 1, folder / "recipe.yaml", *SETTINGS, *LONG, *changes]
    started = Job(cluster, folder / "log", *arguments, f"output={folder / 'output'}", options=options)
    started.wait_for("step 40/200")
    return started


def lives(log: str) -> list[int]:
    """At which step each life of a job ended that was stopped; and that the next resumed from there."""
    stopped = [
        int(step) for step in re.findall(r"stopped by SIG\w+ at step (\d+) of 200; checkpoint saved", log)
    ]
    assert [int(step) for step in re.findall(r"resuming from .* at step (\d+) of 200", log)] == stopped
    return stopped


OTHER_CODE = """
import socket
import sys
if socket.gethostname() == "n2" and "partialfc.doctor" in sys.orig_argv:
    sys.path.insert(0, OTHER)
"""


@pytest.mark.slurm
def test_the_doctor_names_a_node_with_another_version_of_the_package(cluster, folder):
    other = folder / "other"
    shutil.copytree(ROOT / "partialfc", other / "partialfc", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "partialfc/errors.py").open("a") as source:
        source.write("# of another version\n")
    (folder / "sitecustomize.py").write_text(OTHER_CODE.replace("OTHER", repr(str(other))))
    asked = ["-m", "partialfc", "doctor", "--ranks", "1", "recipe.yaml", *SETTINGS, "output=output"]
    command = [
        *("sbatch", "--parsable", "--wait", "--nodes=2", "--ntasks-per-node=1", "--output=log"),
        f"--wrap={shlex.join([sys.executable, *asked])}",
    ]
    subprocess.run(
        command, check=False, cwd=folder, env=cluster | {"PYTHONPATH": str(folder)}, timeout=150,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    log = (folder / "log").read_text()
    told = re.search(
        r"PROBLEM rank 1 on n2 has partialfc \S+ \((\w+)\); rank 0 on n1 has partialfc \S+ \((\w+)\)", log
    )
    assert told and told[1] != told[2], log
    assert (
        "sharded head matches dense reference" in log
        and "n1: 1 rank(s) on cpu" in log
        and "1 problem(s) in" in log
    ), log


@pytest.mark.slurm
@pytest.mark.kills
def test_a_job_near_its_time_limit_is_saved_queued_again_and_finishes(cluster, folder):
    """--signal=B:USR1@120 of launch.sh is this signal, to the batch script alone."""
    started = long_job(cluster, folder)
    started.signal("--batch", "--signal=USR1")
    started.wait("PENDING")
    started.start_now()
    assert started.wait(*ENDED) == ("COMPLETED", "0:0"), started.log
    assert len(lives(started.log)) == 1 and "stopped by SIGUSR1" in started.log
    assert "requeued (1 of at most 100)" in started.log and "Traceback" not in started.log
    assert json.loads((folder / "output/summary.json").read_text())["steps"] == 200


@pytest.mark.slurm
@pytest.mark.kills
def test_a_job_that_is_preempted_goes_on_afterwards(cluster, folder):
    started = long_job(cluster, folder)
    urgent = subprocess.run(
        ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 2"],
        check=True, capture_output=True, text=True, env=cluster, cwd=folder, timeout=60,
    )  # fmt: skip
    assert urgent.stdout
    started.wait("PENDING")
    started.start_now()
    assert started.wait(*ENDED) == ("COMPLETED", "0:0"), started.log
    assert len(lives(started.log)) == 1 and "stopped by SIGTERM" in started.log


@pytest.mark.slurm
@pytest.mark.kills
def test_a_cancelled_job_is_saved_and_not_queued_again(cluster, folder):
    started = long_job(cluster, folder)
    started.signal()
    assert started.wait(*ENDED, "PENDING")[0] == "CANCELLED"
    started.wait_for("; checkpoint saved")
    assert "requeued (" not in started.log and (folder / "output/checkpoints/latest").exists()


@pytest.mark.slurm
@pytest.mark.kills
def test_a_job_is_queued_again_as_often_as_the_recipe_says(cluster, folder):
    started = long_job(cluster, folder, "launch.max_requeues=0")
    started.signal("--batch", "--signal=USR1")
    assert started.wait(*ENDED, "PENDING") == ("FAILED", "75:0"), started.log
    assert "not requeued: launch.max_requeues is 0" in started.log


@pytest.mark.slurm
@pytest.mark.kills
def test_a_job_that_loses_a_nodes_ranks_ends_and_names_them(cluster, folder):
    started = long_job(cluster, folder)
    victims = [pid for pid in ranks_of(folder / "output") if b"\0SLURMD_NODENAME=n2\0" in environment_of(pid)]
    began = time.monotonic()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    state, code = started.wait(*ENDED)
    assert time.monotonic() - began < 30 and (state, code) == ("FAILED", "137:0"), started.log
    assert re.search(r"rank \d on n2 was killed by SIGKILL", started.log) and len(victims) == 1


@pytest.mark.slurm
@pytest.mark.kills
def test_one_task_of_an_array_is_requeued_alone(cluster, folder):
    """Near its time limit; its siblings run on, or have finished, or wait."""
    arguments = [*SETTINGS, "train={length: 120, global_batch_size: 12}", "log.every=20"]
    asked = ["-m", "partialfc", "train", "--requeue", "--ranks", "1", "recipe.yaml", *arguments]
    script = f"exec {shlex.join([sys.executable, *asked])} output=out$SLURM_ARRAY_TASK_ID"
    options = ("--nodes=1", "--requeue", "--open-mode=append", "--output=log%a", "--array=0-2")
    command = ["sbatch", "--parsable", *options, f"--wrap={script}"]
    number = called(cluster, folder, *command).strip()
    until(lambda: "step 20/120" in read(folder / "log1"))
    called(cluster, folder, "scancel", "--batch", "--signal=USR1", f"{number}_1")
    until(lambda: "requeued (" in read(folder / "log1"))
    until(lambda: shown(cluster, folder, f"{number}_1", "JobState") == "PENDING")
    time.sleep(
        2
    )  # SLURM has revoked the credential of a job that starts in the second in which it was requeued
    called(cluster, folder, "scontrol", "update", f"JobId={number}_1", "StartTime=now")
    for task in range(3):
        until(lambda task=task: shown(cluster, folder, f"{number}_{task}", "JobState") in ENDED)
    states = [shown(cluster, folder, f"{number}_{task}", "JobState") for task in range(3)]
    restarts = [shown(cluster, folder, f"{number}_{task}", "Restarts") for task in range(3)]
    assert (states, restarts) == (["COMPLETED"] * 3, ["0", "1", "0"]), read(folder / "log1")
    for task in range(3):
        log = read(folder / f"log{task}")
        assert ("stopped by SIGUSR1" in log) == (task == 1), log
        assert "Traceback" not in log and "pending execution" not in log, log
        assert json.loads(read(folder / f"out{task}/summary.json"))["steps"] == 120


@pytest.mark.slurm
def test_every_task_of_an_array_finds_the_repository(cluster, folder):
    """Tasks that are still waiting have no record of their own, and those that run have several."""
    command = [
        "sbatch",
        "--parsable",
        "--nodes=1",
        "--output=log%a",
        "--array=0-2",
        str(ROOT / "launch.sh"),
        "--setup",
    ]
    number = called(cluster, folder, *command).strip()
    for task in range(3):
        until(lambda task=task: shown(cluster, folder, f"{number}_{task}", "JobState") in ENDED)
        assert shown(cluster, folder, f"{number}_{task}", "ExitCode") == "0:0", read(folder / f"log{task}")


@pytest.mark.slurm
@pytest.mark.kills
def test_an_interrupt_in_the_shell_of_an_allocation_saves_the_run_and_requeues_nothing(cluster, folder):
    asked = ["-m", "partialfc", "train", "--ranks", "1", "recipe.yaml", *SETTINGS, *LONG, "output=output"]
    shell = (
        "set -m; srun --overlap --ntasks=1 sleep 100 & "  # in a shell with job control, as a terminal's is
        f"{shlex.join([sys.executable, *asked])} & echo $! >pid; wait %2; echo code $?; "
        "squeue --noheader --steps --format=%j --jobs=$SLURM_JOB_ID; "
        "scontrol show job $SLURM_JOB_ID | grep -o JobState=[A-Z]*; kill %1"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["salloc", "--nodes=1", "bash", "-c", shell], cwd=folder, env=cluster, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    until(lambda: "step 40/200" in read(folder / "log"))
    os.killpg(int(read(folder / "pid")), signal.SIGINT)
    assert process.wait(60) is not None
    told = read(folder / "log")
    assert re.search(r"stopped by SIGINT at step \d+ of 200; checkpoint saved", told), told
    assert "sleep\nJobState=RUNNING\n" in told.partition("\ncode 75\n")[2], told
    assert "queue" not in told and "Traceback" not in told, told


@pytest.mark.slurm
def test_a_script_that_asks_for_many_tasks_gets_one_launcher_per_node(cluster, folder):
    asked = ["-m", "partialfc", "train", "--ranks", "1", "recipe.yaml", *SETTINGS]
    wrap = shlex.join([sys.executable, *asked])
    options = ("--nodes=2", "--ntasks-per-node=4", "--output=log")
    ended = wait_for_job(cluster, folder, *options, f"--wrap={wrap} output=output")
    log = read(folder / "log")
    assert ended == "COMPLETED" and "on 2 rank(s) of n1, n2" in log, log
    ended = wait_for_job(cluster, folder, *options, f"--wrap=srun {wrap} output=other")
    told = [line for line in read(folder / "log").splitlines() if line.startswith("error: ")]
    assert ended == "FAILED" and len(told) == 8
    assert set(told) == {
        "error: srun with 8 processes (SLURM_STEP_NUM_TASKS): expected 1 process; call partialfc without it: it "
        "starts the ranks of a machine, and in a SLURM job those of all nodes"
    }


@pytest.mark.slurm
def test_a_heterogeneous_job_is_refused_in_one_line(cluster, folder):
    asked = ["-m", "partialfc", "train", "--ranks", "1", "recipe.yaml", *SETTINGS, "output=output"]
    script = folder / "job.sh"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --nodes=1 --output=log\n#SBATCH hetjob\n#SBATCH --nodes=1\n{shlex.join([sys.executable, *asked])}\n"
    )
    assert wait_for_job(cluster, folder, str(script)) == "FAILED"
    assert read(folder / "log").startswith(
        "error: SLURM: expected a job of one component, got a heterogeneous job of 2; "
    )
    assert read(folder / "log").count("\n") == 1


def wait_for_job(cluster: dict[str, str], folder: Path, *arguments: str) -> str:
    """Submit a job, and return the state in which it ended."""
    number = called(cluster, folder, "sbatch", "--parsable", *arguments).strip()
    until(lambda: shown(cluster, folder, number, "JobState") in ENDED)
    return shown(cluster, folder, number, "JobState")


def shown(cluster: dict[str, str], folder: Path, job: str, key: str) -> str:
    """What SLURM says of a job, or of a task of an array."""
    return re.search(
        rf"\b{key}=(\S+)", called(cluster, folder, "scontrol", "--oneliner", "show", "job", job)
    )[1]


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


def ranks_of(output: Path) -> list[int]:
    """Of the run there."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if b"partialfc.train" in command and f"output={output}".encode() in command:
            found.append(int(path.name))
    return found


def environment_of(pid: int) -> bytes:
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


def test_two_torchruns_by_hand_are_two_nodes(folder):
    port = free_ports(1)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=hand", "--max-restarts=0"),
        *("-m", "partialfc.train", str(folder / "recipe.yaml"), *SETTINGS, f"output={folder / 'output'}"),
    ]
    nodes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    said = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "on 2 rank(s)" in "".join(said) and (folder / "output/summary.json").exists()
