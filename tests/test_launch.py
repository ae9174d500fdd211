"""The launcher: how many ranks, and what a user sees of bad input, on the command line."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import msgspec
import pytest
import torch
from helpers.calling import called
from helpers.faces import write_pack, write_pairs
from helpers.ports import free_ports
from helpers.running import children, command_of

from partialfc.__main__ import main
from partialfc.config import Config
from partialfc.errors import InputError
from partialfc.launching.launcher import num_ranks
from partialfc.launching.local_ranks import _numa_options, _RankProcesses

RECIPE = """
data: {path: PACK, num_workers: 0}
backbone: {width: 4, depths: [1, 1], input_size: 32, embedding_size: 16}
train: {length: 3, global_batch_size: 12}
head: {sample_rate: 0.5}
device: cpu
output: OUTPUT
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_pack(tmp_path / "pack", 5, 4)
    write_pairs(tmp_path / "pack/some.bin")
    text = RECIPE.replace("PACK", str(tmp_path / "pack")).replace("OUTPUT", str(tmp_path / "output"))
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


def launched(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`path`: of a sitecustomize.py, which breaks something."""
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(path)} if path else {}):
        return called("train", *arguments)


def test_two_ranks_train(recipe, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    done = launched(recipe, "log.every=1")
    assert done.returncode == 0, done.stderr
    assert "on 2 rank(s)" in done.stdout and "step 3/3" in done.stdout and not done.stderr
    assert json.loads((recipe.parent / "output/summary.json").read_text())["steps"] == 3
    assert not list((tmp_path / "temporary").glob("torchelastic*"))  # what the agent wrote is gone


def test_a_plan_starts_nothing_and_takes_overrides_before_and_after(recipe):
    done = called(
        "plan", recipe, "train.global_batch_size=128", "--gpus", 8, "--gpu", "a100", "head.sample_rate=0.1"
    )
    assert done.returncode == 0, done.stderr
    assert "5 identities on 8 ranks: 1 on a rank" in done.stdout
    assert "largest run in 80 GiB per rank on 8 ranks" in done.stdout
    assert not (recipe.parent / "output").exists()
    done = called("plan", recipe, "--gpus", 5)
    assert done.returncode == 2 and "train.global_batch_size 12 cannot be split over 5 ranks" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--identities", "0"], "--identities 0: expected a number above 0"),
        (["--gpus", "-2"], "--gpus -2: expected a number above 0"),
        (["--gpu-memory", "nan"], "--gpu-memory nan: expected a number above 0"),
        (["--gpu", "b200"], "--gpu b200: expected one of v100, a100, h100, h200"),
        (["data.path=nowhere"], r"/.*/nowhere/property: not found; pass --identities N"),
    ],
)
def test_a_plan_of_nonsense_is_refused_in_one_line(recipe, capfd, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(recipe), *arguments])
    out, err = capfd.readouterr()
    assert ended.value.code == 2 and not out
    assert re.fullmatch(f"error: {message}\n", err), err


def test_bad_input_on_two_ranks_is_one_line_and_exit_code_2(recipe):
    (recipe.parent / "pack/train.rec").unlink()
    done = launched(recipe)
    assert done.returncode == 2
    pack = recipe.parent / "pack"
    assert done.stderr == f"error: {pack}: no .rec file; expected train.rec\n" and not done.stdout


@pytest.mark.kills
def test_a_killed_data_worker_ends_all_ranks_with_the_reason(recipe):
    """At most 30 seconds after; nothing hangs."""
    command = [
        sys.executable,
        "-m",
        "partialfc",
        "train",
        str(recipe),
        "data.num_workers=1",
        "train.length=1000000",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                if line.startswith("step 20/"):
                    break
            ranks = [pid for pid in children(process.pid) if "partialfc.train" in command_of(pid)]
            (worker,) = (pid for pid in children(ranks[1]) if "spawn_main" in command_of(pid))
            os.kill(worker, signal.SIGKILL)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert len(ranks) == 2 and process.returncode == 137, err
    reason = (
        r"error: data worker 0 of rank 1 on \S+ was killed by SIGKILL, probably because memory ran out .*"
    )
    others = "error: lost a rank; the run ended"
    assert [line for line in err.splitlines() if not re.fullmatch(reason, line)] in ([], [others]), err
    assert re.search(reason, err), err
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)


def test_ranks_of_another_launcher_meet(recipe):
    """As DeepSpeed starts them: no TORCHELASTIC_RUN_ID, and --local_rank."""
    port = str(free_ports(1))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "partialfc.train", f"--local_rank={rank}", str(recipe)],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "on 2 rank(s)" in said[0][0] and "on 2 rank(s)" not in said[1][0]
    assert (recipe.parent / "output/summary.json").exists()


def test_a_defect_of_ours_is_a_traceback_and_exit_code_1(recipe):
    (recipe.parent / "sitecustomize.py").write_text(
        "import partialfc.training.run; partialfc.training.run.build_backbone = None"
    )
    done = launched(recipe, "--ranks", 1, path=recipe.parent)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ChildFailedError" not in done.stderr


DEFECT = """
import os
import numpy
import partialfc.head.sampling as sampling

def sample_classes(*arguments, right=sampling.sample_classes):
    if os.environ.get("RANK") == "1":
        numpy.zeros(3) + numpy.zeros(4)
    return right(*arguments)

sampling.sample_classes = sample_classes
"""


def test_a_broadcast_error_on_one_rank_keeps_its_traceback(recipe):
    (recipe.parent / "sitecustomize.py").write_text(DEFECT)
    done = launched(recipe, "--ranks", 2, path=recipe.parent)
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert "ValueError: operands could not be broadcast together" in done.stderr
    assert "error: operands" not in done.stderr


OUT_OF_MEMORY = """
import os, pathlib
import torch
import partialfc.head.sampling as sampling

def sample_classes(*arguments, original=sampling.sample_classes):
    if os.environ.get("RANK") == "1":
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which 1.00 MiB "
            "is free. Process 1 has 1.0 GiB memory in use. If reserved ..."
        )
    return original(*arguments)

sampling.sample_classes = sample_classes
torch.cuda.memory._dump_snapshot = lambda path: pathlib.Path(path).write_bytes(b"snapshot")
"""


def test_a_gpu_without_memory_is_one_line_with_a_snapshot(recipe):
    (recipe.parent / "sitecustomize.py").write_text(OUT_OF_MEMORY)
    done = launched(recipe, "--ranks", 2, path=recipe.parent)
    snapshot = recipe.parent / "output/out_of_memory/rank_00001.pickle"
    assert done.returncode == 2 and snapshot.read_bytes() == b"snapshot"
    (line,) = (line for line in done.stderr.splitlines() if line != "error: lost a rank; the run ended")
    assert re.fullmatch(
        r"error: rank 1 on \S+: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139.80 GiB of "
        r"which 1.00 MiB is free; lower train.micro_batch_size .*; snapshot of its memory: (.*)",
        line,
    )[1] == str(snapshot)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["optim.momentun=0.9"],
            "optim.momentun: unknown key; the section optim has .*; did you mean momentum?",
        ),
        (["train.global_batch_size=many"], "train.global_batch_size: expected int, got str; found 'many'"),
        (["head.sample_rate=1.5"], "head.sample_rate: expected float <= 1.0; found 1.5"),
        (["loss.name=acrface"], "expected one of adaface, arcface, .*; did you mean arcface?"),
        (
            ["--ranks", "5"],
            "train.global_batch_size 12 cannot be split over 5 ranks; expected one of 1, 2, 3, 4, 6",
        ),
        (["--ranks", "0"], "cannot be split over 0 ranks"),
        (
            ["train.global_batch_size=1"],
            "train.global_batch_size 1 cannot be split over any number of ranks; expected at least 2 images",
        ),
    ],
)
def test_a_recipe_is_refused_before_any_rank_starts(recipe, capfd, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["train", str(recipe), *arguments])
    out, err = capfd.readouterr()
    assert ended.value.code == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1
    assert re.search(message, err), err


def config_of(batch: int, device: str = "auto") -> Config:
    tree = {"data": {"path": "x"}, "train": {"length": 1, "global_batch_size": batch}, "device": device}
    return msgspec.convert(tree, Config)


@pytest.mark.parametrize(
    ("gpus", "batch", "nodes", "ranks"),
    [(0, 128, 1, 2), (0, 9, 1, 1), (8, 128, 1, 8), (8, 12, 1, 6), (8, 12, 2, 3), (4, 3, 1, 1)],
)
def test_one_rank_a_gpu_and_as_many_as_the_batch_allows(monkeypatch, gpus, batch, nodes, ranks):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert num_ranks(config_of(batch), None, nodes) == ranks


def test_no_more_ranks_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        InputError, match="device: cuda: expected 4 GPUs, but torch sees 2 GPUs on this machine"
    ):
        num_ranks(config_of(16), 4, 1)
    assert num_ranks(config_of(16, device="cpu"), 4, 1) == 4


def test_cuda_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="device: cuda: expected 1 GPUs, but torch sees 0 GPUs"):
        num_ranks(config_of(16, device="cuda"), None, 1)


BY_PYTHON = """
import atexit
import sys
if "partialfc.train" in " ".join(sys.orig_argv):
    atexit.register(lambda: print("ended by Python", file=sys.stderr))
"""


def test_ranks_with_bad_input_end_at_once(recipe):
    """Python's own end aborts a rank, exit code 134, where a thread of torch's is still about."""
    (recipe.parent / "sitecustomize.py").write_text(BY_PYTHON)
    (recipe.parent / "pack/train.rec").unlink()
    done = launched(recipe, path=recipe.parent)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


LEFT_ALONE = """
import os
import sys
import time
from pathlib import Path
if "partialfc.train" in " ".join(sys.orig_argv):
    import partialfc.runtime.checkpoint.writer as writer
    import partialfc.training.loop as loop
    raised = Path(__file__).with_name("raised")

    class Slow:
        def __del__(self, sleep=time.sleep):
            sleep(4)

    def step(run, *arguments, right=loop.train_step):
        if run.step == 5 and run.dist_ctx.is_main:
            raised.touch()
            raise ZeroDivisionError("ours")
        return right(run, *arguments)

    def shard(*arguments):
        while not raised.exists():
            time.sleep(0.1)
        time.sleep(2)
        os._exit(4)

    loop.train_step = step
    if os.environ["RANK"] == "0":
        sys.slow = Slow()  # Python's end takes some seconds
    else:
        writer.write_shard = shard
"""


def test_a_defect_while_a_thread_is_inside_a_collective_keeps_its_exit_code(recipe):
    """The first rank's writer waits for the other's, which ends meanwhile: Python's own end would be an abort."""
    (recipe.parent / "sitecustomize.py").write_text(LEFT_ALONE)
    done = launched(recipe, "checkpoint.every=3", "train.length=100", path=recipe.parent)
    assert "ZeroDivisionError: ours" in done.stderr and "terminate called" not in done.stderr, done.stderr
    assert done.returncode == 1, done.stderr


def test_the_rank_that_ended_first_gives_the_exit_code(capfd):
    """Others abort, or lose it, only because it is gone."""
    processes = _RankProcesses()
    failures = {
        0: SimpleNamespace(pid=11, exitcode=-signal.SIGABRT, signal_name=lambda: "SIGABRT"),
        1: SimpleNamespace(pid=12, exitcode=4),
        2: SimpleNamespace(pid=13, exitcode=-signal.SIGKILL, signal_name=lambda: "SIGKILL"),
    }
    processes._ended = [12, 13, 11]
    assert processes.exit_code(failures) == 128 + signal.SIGKILL
    assert re.fullmatch(
        r"rank 2 on \S+ was killed by SIGKILL, probably because memory ran out .*\n", capfd.readouterr().err
    )
    failures[2].exitcode = 1  # and has told why
    assert processes.exit_code(failures) == 1 and not capfd.readouterr().err


def test_binding_to_numa_nodes_is_asked_of_torch_where_it_can(recipe, monkeypatch, capfd):
    done = launched(recipe, "launch.numa=true", "launch.flight_recorder=true")
    assert done.returncode == 0, done.stderr
    assert _numa_options()["numa_options"].should_fall_back_if_binding_fails
    monkeypatch.setitem(sys.modules, "torch.numa.binding", None)
    assert _numa_options() == {}
    assert capfd.readouterr().err == "warning: launch.numa: not supported by this version of PyTorch\n"


def test_a_first_rank_that_hears_no_signal_and_is_ended_is_told_of(capfd):
    """It waits inside a library for the others, which have stopped; the launcher ends it after a while."""
    processes = _RankProcesses()
    processes._forwarded.add(signal.SIGTERM)
    processes._killed.add(11)
    failures = {0: SimpleNamespace(pid=11, exitcode=-signal.SIGKILL), 1: SimpleNamespace(pid=12, exitcode=75)}
    assert processes.exit_code(failures) == 75
    assert capfd.readouterr().err == "stopped by SIGTERM; rank 0 did not exit and was killed\n"
