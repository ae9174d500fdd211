"""A real SLURM with two nodes on this machine, and what its jobs train on."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.faces import write_pack, write_pairs
from helpers.ports import free_ports
from jobs import PACKAGES, SCRIPT


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
    settings["OMP_NUM_THREADS"] = "1"  # both nodes are this machine
    environment = os.environ | settings | {"SLURM_CONF": str(folder / "slurm.conf")}
    try:
        subprocess.run([SCRIPT, "start", folder], check=True, env=environment, timeout=60)
        yield environment
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True, env=environment, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pack(tmp_path / "pack", 5, 4)
    write_pairs(tmp_path / "pack/some.bin")
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{path: {tmp_path / 'pack'}, num_workers: 1}}\ntrain: {{length: 3}}\n"
    )
    return tmp_path
