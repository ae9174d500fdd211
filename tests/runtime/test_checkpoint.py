"""Checkpoints on their own: what is damaged is noticed, nothing in them runs, and which go is not asked of a clock."""

import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from damage import damages

from partialfc.errors import InputError
from partialfc.runtime import checkpoint, comm
from partialfc.runtime.checkpoint import Checkpoints, writer
from partialfc.runtime.checkpoint import checkpoints as checkpoints_module
from partialfc.runtime.checkpoint.shards import write_shard

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Iterator[comm.Ranks]:
    """One rank, this process."""
    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield comm.ranks_of(CPU)
    dist.destroy_process_group()


def state_of(ranks: comm.Ranks, rows: int = 7, seed: int = 0) -> dict[str, Any]:
    """Tensors of every kind that a run has: split by rows, replicated, scalars, of several types."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(rows, 3, generator=generator)
    share = -(-rows // ranks.size)
    mine = whole[ranks.rank * share : (ranks.rank + 1) * share].clone()
    return {
        "head": {
            "centers": comm.sharded(mine, rows, ranks.group),
            "counts": comm.sharded(mine[:, 0].mul(100).to(torch.int32), rows, ranks.group),
        },
        "weight": torch.randn(4, 2, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "steps": torch.tensor(seed),
        "none": torch.empty(0, 3),
    }


def zeros_like(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: zeros_like(it) if isinstance(it, dict) else torch.zeros_like(it) for name, it in state.items()
    }


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_equal(found[name], value)
        else:
            assert torch.equal(comm.row_range(found[name])[0], comm.row_range(value)[0]), name


def save(folder: Path, ranks: comm.Ranks, step: int, keep: int = 2, **kwargs: Any) -> None:
    checkpoints = Checkpoints(folder, keep=keep, ranks=ranks)
    checkpoints.save(step, state_of(ranks, seed=step), {"seed": step}, seconds=1.0, **kwargs)
    outcome = checkpoints.wait()
    assert outcome is not None and outcome.problem is None, outcome


def found_in(folder: Path, ranks: comm.Ranks) -> checkpoint.Found | None:
    return Checkpoints(folder, keep=2, ranks=ranks).to_resume("auto")


def saved_and_loaded(folder: Path, loads: bool) -> int:
    """Saves, or loads what as many or other ranks have saved; how many bytes this rank's file has."""
    ranks = comm.ranks_of(CPU)
    if not loads:
        save(folder, ranks, 5)
        name = f"rank_{ranks.rank:05d}.safetensors"
        return (folder / "step_00000005" / name).stat().st_size
    found = found_in(folder, ranks)
    expected = state_of(ranks, seed=5)
    state = zeros_like(expected)
    Checkpoints(folder, keep=2, ranks=ranks).load(found, state)
    assert_equal(state, expected)
    return 0


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(1, 1), (2, 2), (3, 1), (1, 3), (3, 2), (2, 3)])
def test_what_was_saved_is_loaded_at_any_world_size(ranks, tmp_path, saved_by, loaded_by):
    ranks.run(saved_by, saved_and_loaded, tmp_path, False)
    ranks.run(loaded_by, saved_and_loaded, tmp_path, True)


def test_ranks_write_about_as_much(ranks, tmp_path):
    sizes = ranks.run(3, saved_and_loaded, tmp_path, False)
    assert (
        max(sizes) - min(sizes) < 4 * 2 * 9 * 4 + 400
    )  # the largest replicated tensor, and what describes it


def test_part_of_a_checkpoint_needs_no_process_group(alone, tmp_path):
    save(tmp_path, alone, 3)
    part = checkpoint.read_part(tmp_path / "step_00000003", "head")
    assert torch.equal(part["centers"], state_of(alone, seed=3)["head"]["centers"].to_local())
    assert part.keys() == {"centers", "counts"}


@pytest.mark.parametrize("name", ["run.json", "rank_00000.safetensors"])
def test_any_damage_is_noticed_and_the_checkpoint_before_is_taken(alone, tmp_path, name):
    for step in (1, 2):
        save(tmp_path / "whole", alone, step)
    for damaged in damages(tmp_path / "whole/step_00000002" / name):
        shutil.copytree(tmp_path / "whole", tmp_path / "run", symlinks=True)
        path = tmp_path / "run/step_00000002" / name
        path.unlink() if damaged is None else path.write_bytes(damaged)
        found = found_in(tmp_path / "run", alone)
        assert found.path.name == "step_00000001" and len(found.problems) == 1
        assert "step_00000002" in found.problems[0] and "\n" not in found.problems[0]
        with pytest.raises(InputError, match="step_00000002"):
            checkpoint.read_part(path.parent, "head")
        shutil.rmtree(tmp_path / "run")


def test_where_none_is_left_nothing_begins_afresh(alone, tmp_path):
    save(tmp_path, alone, 1)
    (tmp_path / "step_00000001/rank_00000.safetensors").write_bytes(b"")
    message = r"rank_00000.safetensors: 0 bytes of \d+; no checkpoint is left to go on from; name another"
    with pytest.raises(comm.CollectiveInputError, match=message):
        found_in(tmp_path, alone)
    with pytest.raises(comm.CollectiveInputError, match=r"rank_00000\.safetensors: 0 bytes"):
        Checkpoints(tmp_path, keep=2, ranks=alone).to_resume(str(next(tmp_path.glob("step_*"))))
    assert found_in(tmp_path / "empty", alone) is None


def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(alone, tmp_path, monkeypatch):
    """As where a server is away for a moment: nothing is renamed, and no older checkpoint taken."""
    for step in (1, 2):
        save(tmp_path, alone, step)

    def unreadable(path: Path) -> Any:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(checkpoints_module, "digest_of", unreadable)
    with pytest.raises(
        comm.CollectiveInputError, match=r"step_00000002/rank_00000\.safetensors: Input/output error"
    ):
        found_in(tmp_path, alone)
    monkeypatch.undo()
    assert found_in(tmp_path, alone).path.name == "step_00000002"


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def test_nothing_in_a_checkpoint_runs(alone, tmp_path, monkeypatch):
    """Whatever file is put in the place of one of ours, or beside them."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "run", alone, 1)
    folder = tmp_path / "run/step_00000001"
    torch.save(Payload(), tmp_path / "payload.pt")
    for payload in (pickle.dumps(Payload()), (tmp_path / "payload.pt").read_bytes()):
        for name in (".metadata", "__0_0.distcp"):
            (folder / name).write_bytes(payload)
        assert found_in(tmp_path / "run", alone).path == folder
        checkpoint.read_part(folder, "head")
        for name in ("run.json", "rank_00000.safetensors"):
            before = (folder / name).read_bytes()
            (folder / name).write_bytes(payload)
            with pytest.raises(InputError):
                checkpoint.read_part(folder, "head")
            (folder / name).write_bytes(before)
    assert not (tmp_path / "ran").exists()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_clock_that_is_set_back_removes_nothing_new(alone, tmp_path):
    for step in range(1, 5):
        save(tmp_path, alone, step)
        for path in tmp_path.glob("step_*/run.json"):
            os.utime(path, (1e9 - step, 1e9 - step))
    assert names_in(tmp_path) == {"latest", "step_00000003", "step_00000004"}


def test_a_run_that_went_back_keeps_what_it_saves(alone, tmp_path):
    """The steps of its newer checkpoints are smaller than those of what it left."""
    for step in (10, 20, 5, 6):
        save(tmp_path, alone, step)
    assert names_in(tmp_path) == {"latest", "step_00000005", "step_00000006"}
    assert found_in(tmp_path, alone).path.name == "step_00000006"
    save(tmp_path, alone, 5)
    assert found_in(tmp_path, alone).manifest.about == {"seed": 5}


def test_the_best_stays(alone, tmp_path):
    save(tmp_path, alone, 1, score=0.9, best=True)
    for step in (2, 3, 4):
        save(tmp_path, alone, step, keep=1)
    assert names_in(tmp_path) == {"best", "latest", "step_00000001", "step_00000004"}
    assert (tmp_path / "best").resolve().name == "step_00000001"
    assert Checkpoints(tmp_path, keep=1, ranks=alone).best_score() == 0.9
    save(tmp_path, alone, 5, keep=1, score=0.95, best=True)
    assert names_in(tmp_path) == {"best", "latest", "step_00000005"}


def test_what_is_no_checkpoint_is_left_alone(alone, tmp_path):
    (tmp_path / "step_99").mkdir()
    (tmp_path / "step_of_mine").mkdir()
    for step in (1, 2, 3):
        save(tmp_path, alone, step)
    assert names_in(tmp_path) == {"latest", "step_00000002", "step_00000003", "step_99", "step_of_mine"}
    found = found_in(tmp_path, alone)
    assert found.path.name == "step_00000003"
    assert found.problems == [
        f"{tmp_path}/step_99: no checkpoint; wanted a folder step_* with run.json in it, or a run's"
    ]


def fails_on_one(folder: Path, error: Exception) -> tuple[str | None, str | None]:
    """A save in which the last rank's disk takes no more, and one that works: the problem, and what raised."""
    ranks = comm.ranks_of(CPU)

    def full(*arguments: Any) -> Any:
        raise error

    checkpoints, raised = Checkpoints(folder, keep=2, ranks=ranks), None
    if ranks.rank == ranks.size - 1:
        writer.write_shard = full
    try:
        checkpoints.save(1, state_of(ranks), {}, seconds=0.0)
        outcome = checkpoints.wait()
    except RuntimeError as defect:
        outcome, raised = None, str(defect)
    finally:
        writer.write_shard = write_shard
    checkpoints.save(2, state_of(ranks), {}, seconds=0.0)
    assert checkpoints.wait().problem is None
    return (outcome.problem if outcome else None), raised


def test_a_full_disk_of_one_rank_fails_a_save_on_all_and_is_named(ranks, tmp_path):
    error = OSError(28, "No space left on device", "/disk/rank_00002.safetensors")
    told = ranks.run(3, fails_on_one, tmp_path, error)
    assert told == [("/disk/rank_00002.safetensors: No space left on device: the disk is full", None)] * 3
    assert names_in(tmp_path) == {"latest", "step_00000002"}


def test_a_defect_of_ours_in_a_save_is_raised_on_all_ranks(ranks, tmp_path):
    for problem, raised in ranks.run(2, fails_on_one, tmp_path, ZeroDivisionError("ours")):
        assert problem is None and "ZeroDivisionError: ours" in raised and "step 1" in raised


def test_tensors_that_do_not_fit_are_named(alone, tmp_path):
    save(tmp_path, alone, 1)
    found, checkpoints = found_in(tmp_path, alone), Checkpoints(tmp_path, keep=2, ranks=alone)
    for state, message in (
        (
            {"weight": torch.zeros(4, 2, 3)},
            r"weight is F32 \[4, 2, 3, 3\], the recipe makes it F32 \[4, 2, 3\]",
        ),
        ({"half": torch.zeros(5)}, r"half is BF16 \[5\], the recipe makes it F32 \[5\]"),
        ({"other": torch.zeros(1)}, "of another version, which did not write other"),
    ):
        with pytest.raises(comm.CollectiveInputError, match=message):
            checkpoints.load(found, state)
    with pytest.raises(TypeError, match=r"a\.b: found int, wanted a tensor"):
        checkpoints.save(1, {"a": {"b": 3}}, {}, seconds=0.0)


def test_steps_may_change_the_tensors_while_they_are_written(alone, tmp_path, monkeypatch):
    """What is saved is what they were; a second save waits for the first."""
    state = state_of(alone, seed=1)
    expected = state_of(alone, seed=1)
    checkpoints = Checkpoints(tmp_path, keep=2, ranks=alone)
    monkeypatch.setattr(
        writer, "write_shard", lambda *arguments: (changed.wait(60), write_shard(*arguments))[1]
    )
    changed = threading.Event()
    assert checkpoints.save(1, state, {}, seconds=0.0) is None and checkpoints.finished() is None
    state["weight"].zero_()
    changed.set()
    assert checkpoints.save(2, state, {}, seconds=0.0).step == 1
    assert checkpoints.wait().step == 2 and checkpoints.wait() is None
    loaded = zeros_like(expected)
    checkpoints.load(checkpoints.to_resume(str(tmp_path / "step_00000001")), loaded)
    assert_equal(loaded, expected)
