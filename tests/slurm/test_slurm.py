"""launch.sh as a job of a real SLURM with two nodes on this machine; and two launchers by hand."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faces import write_pack, write_pairs

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("mini_slurm.sh")
PACKAGES = "slurmd slurmctld slurm-client munge"
SETTINGS = [
    "device=cpu",
    "backbone={width: 4, depths: [1, 1], input_size: 32, embedding: 16}",
    "train={length: 6, batch: 12}",
]


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that are free on loopback."""
    for first in range(20_000 + os.getpid() % 10_000, 60_000, 7):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for place, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + place))
            return first
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise OSError("no free ports")


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """What its clients want in the environment."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if os.geteuid() != 0 or not shutil.which("slurmctld", path=path):
        pytest.skip(
            f"no SLURM here, which wants root and: apt-get install --no-install-recommends {PACKAGES}"
        )
    folder = Path("/tmp", f"slurm-{os.getpid()}")  # short: sockets live in it
    settings = {"MINI_SLURM_PORT": str(free_ports(3)), "MINI_SLURM_GPUS": "0", "PATH": path}
    environment = os.environ | settings | {"SLURM_CONF": str(folder / "slurm.conf")}
    try:
        subprocess.run([SCRIPT, "start", folder], check=True, env=environment, timeout=60)
        yield environment
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True, env=environment, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def job(cluster: dict[str, str], log: Path, *arguments: object) -> tuple[str, str]:
    """State and exit code of a job of two nodes that runs launch.sh."""
    command = ["sbatch", "--parsable", "--nodes=2", f"--output={log}", "launch.sh", *map(str, arguments)]
    sent = subprocess.run(
        command, check=True, capture_output=True, text=True, env=cluster, cwd=ROOT, timeout=60
    )
    number = sent.stdout.strip()
    for _ in range(1500):
        shown = subprocess.run(
            ["scontrol", "show", "job", number],
            check=True,
            capture_output=True,
            text=True,
            env=cluster,
            timeout=60,
        ).stdout
        state = re.search(r"JobState=(\w+)", shown)
        code = re.search(r"ExitCode=(\S+)", shown)
        assert state and code, shown
        if state[1] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
            return state[1], code[1]
        time.sleep(0.2)
    raise TimeoutError(f"job {number} did not end: {log.read_text()}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pack(tmp_path / "pack", 5, 4)
    write_pairs(tmp_path / "pack/some.bin")
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{path: {tmp_path / 'pack'}, workers: 1}}\ntrain: {{length: 3}}\n"
    )
    return tmp_path


@pytest.mark.slurm
def test_a_job_on_two_nodes_trains(cluster, folder):
    output = folder / "output"
    arguments = ["--ranks", 1, folder / "recipe.yaml", *SETTINGS, f"output={output}"]
    ended = job(cluster, folder / "log", *arguments)
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
