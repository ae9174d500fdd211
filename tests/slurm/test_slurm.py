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
from pathlib import Path

import pytest
from jobs import ENDED, ROOT, SETTINGS, Job, free_ports, job


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
        (["margin.name=nonsense"], "margin.name: 'nonsense', wanted one of"),
        (["train.batch=13"], "train.batch 13 cannot be dealt out to 2 ranks"),
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


LONG = ["train={length: 200, batch: 12}", "report.every=20"]


def long_job(cluster: dict[str, str], folder: Path, *changes: str, options: tuple[str, ...] = ()) -> Job:
    """A job that is at its steps: some ten seconds long."""
    arguments = ["--ranks", 1, folder / "recipe.yaml", *SETTINGS, *LONG, *changes]
    started = Job(cluster, folder / "log", *arguments, f"output={folder / 'output'}", options=options)
    started.wait_for("step 40/200")
    return started


def lives(log: str) -> list[int]:
    """At which step each life of a job ended that was stopped; and that the next went on from there."""
    stopped = [int(step) for step in re.findall(r"stopped by SIG\w+ at step (\d+) of 200: saved", log)]
    assert [int(step) for step in re.findall(r"going on from .*, at step (\d+) of 200", log)] == stopped
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
    assert "sharded equals dense" in log and "n1: 1 rank(s) on cpu" in log and "1 problem(s), after" in log, (
        log
    )


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
    assert "queued again, 1 of 100 times at most" in started.log and "Traceback" not in started.log
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
    started.wait_for(": saved")
    assert "queued again" not in started.log and (folder / "output/checkpoints/latest").exists()


@pytest.mark.slurm
@pytest.mark.kills
def test_a_job_is_queued_again_as_often_as_the_recipe_says(cluster, folder):
    started = long_job(cluster, folder, "launch.requeues=0")
    started.signal("--batch", "--signal=USR1")
    assert started.wait(*ENDED, "PENDING") == ("FAILED", "75:0"), started.log
    assert "not queued again: launch.requeues is 0" in started.log


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
