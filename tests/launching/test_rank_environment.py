"""What other launchers set and add is understood, or refused in one line."""

import argparse
import os

import pytest
import torch

from partialfc.errors import InputError
from partialfc.runtime import devices, platform
from partialfc.runtime.rank_environment import (
    RankEnvironment,
    add_local_rank_argument,
    check_has_rank,
    check_launched_once,
    read_rank_environment,
)

ENV = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "LOCAL_RANK": "1"}
OTHERS = ("TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (*ENV, *OTHERS, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def export(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_the_variables_of_torch_are_read(monkeypatch):
    assert read_rank_environment() is None
    export(monkeypatch, ENV)
    assert read_rank_environment() == RankEnvironment(rank=1, world_size=4, local_rank=1)


def test_world_size_alone_is_no_rank(monkeypatch):
    """Many batch scripts export it."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert read_rank_environment() is None
    check_launched_once(1)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_variable_is_named(monkeypatch, name, value):
    export(monkeypatch, ENV)
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name}: expected"):
        read_rank_environment()


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANK", "x"), ("RANK", "4"), ("RANK", "-1"), ("WORLD_SIZE", "0"), ("MASTER_PORT", "a")],
)
def test_a_wrong_variable_is_named(monkeypatch, name, value):
    export(monkeypatch, {**ENV, name: value})
    with pytest.raises(InputError, match=f"^{name}: expected"):
        read_rank_environment()


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun with 4 processes"),
        ({"PMI_SIZE": "2"}, "mpirun with 2 processes"),
        ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}, "srun with 8 processes"),
    ],
)
def test_processes_without_a_rank_are_refused(monkeypatch, variables, found):
    check_has_rank()
    export(monkeypatch, variables)
    with pytest.raises(InputError, match=found):
        check_has_rank()
    with pytest.raises(InputError, match=found):
        check_launched_once(nodes=1)
    check_launched_once(nodes=4)  # one launcher on each of four nodes
    export(monkeypatch, ENV)  # mpirun -x RANK=...
    check_has_rank()


def test_a_launcher_within_torchrun_is_refused(monkeypatch):
    export(monkeypatch, ENV)
    with pytest.raises(InputError, match="no torchrun around partialfc"):
        check_launched_once(nodes=1)


def test_a_pod_of_several_is_not_a_run_of_its_own(monkeypatch):
    """An operator sets RANK and WORLD_SIZE to pods."""
    export(monkeypatch, ENV)
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(InputError, match="WORLD_SIZE=4 and RANK are set, but --nodes is 1"):
        check_launched_once(nodes=1)
    check_launched_once(nodes=4)


@pytest.mark.parametrize("argument", [["--local-rank=3"], ["--local_rank", "3"]])
def test_a_local_rank_on_the_command_line_is_read(monkeypatch, argument):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("LOCAL_RANK")
    parser = argparse.ArgumentParser()
    add_local_rank_argument(parser)
    parser.parse_args(argument)
    assert os.environ["LOCAL_RANK"] == "3"


def see_gpus(monkeypatch, count, visible=None, cuda="12.6"):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_a_rank_uses_the_gpu_of_its_local_rank_or_its_only_one(monkeypatch):
    see_gpus(monkeypatch, 4)
    assert devices.gpu_index(3) == 3
    see_gpus(monkeypatch, 1, visible="3")  # srun --gpus-per-task=1
    assert devices.gpu_index(3) == 0
    see_gpus(monkeypatch, 2, visible="0,1")
    with pytest.raises(InputError, match=r"LOCAL_RANK=3: .* torch sees 2 GPUs .* CUDA_VISIBLE_DEVICES=0,1"):
        devices.gpu_index(3)


@pytest.mark.parametrize(
    ("visible", "cuda", "reason"),
    [
        (None, None, "it was built without CUDA"),
        (None, "12.6", "see nvidia-smi"),
        ("", "12.6", "CUDA_VISIBLE_DEVICES='' hides all"),
        ("-1", "12.6", "CUDA_VISIBLE_DEVICES='-1' hides all"),
        ("GPU-8932f937", "12.6", "CUDA_VISIBLE_DEVICES=GPU-8932f937; a number or UUID that does not exist"),
        (
            "MIG-GPU-1/7/0,MIG-GPU-1/8/0",
            "12.6",
            "only the first MIG instance of CUDA_VISIBLE_DEVICES=MIG-GPU",
        ),
    ],
)
def test_what_hides_gpus_is_named(monkeypatch, visible, cuda, reason):
    see_gpus(monkeypatch, 0, visible, cuda)
    with pytest.raises(InputError, match="torch sees 0 GPUs on this machine") as raised:
        devices.gpu_index(0)
    assert reason in str(raised.value)
    monkeypatch.setattr(platform, "installed_gpus", lambda: 8)
    assert reason in (devices.explain_hidden_gpus("auto") or "")
    assert devices.explain_hidden_gpus("cpu") is None
