"""Checkpoints on their own: what is damaged is noticed, nothing in them runs, and which go is not asked of a clock."""

import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import xxhash
from helpers.checkpoints import CPU, assert_equal, found_in, names_in, save, state_of, zeros_like
from helpers.damage import damages

from partialfc.errors import InputError
from partialfc.runtime import checkpoint, comm
from partialfc.runtime.checkpoint import CheckpointManager, writer
from partialfc.runtime.checkpoint import manager as checkpoints_module
from partialfc.runtime.checkpoint.manifest import write_manifest
from partialfc.runtime.checkpoint.safetensors_io import write_shard


def saved_and_loaded(folder: Path, loads: bool) -> int:
    """Saves, or loads what as many or other ranks have saved; how many bytes this rank's file has."""
    dist_ctx = comm.create_dist_context(CPU)
    if not loads:
        save(folder, dist_ctx, 5)
        name = f"rank_{dist_ctx.rank:05d}.safetensors"
        return (folder / "step_00000005" / name).stat().st_size
    found = found_in(folder, dist_ctx)
    expected = state_of(dist_ctx, seed=5)
    state = zeros_like(expected)
    CheckpointManager(folder, keep=2, dist_ctx=dist_ctx).load(found, state)
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
    part = checkpoint.read_tensors(tmp_path / "step_00000003", "head")
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
            checkpoint.read_tensors(path.parent, "head")
        shutil.rmtree(tmp_path / "run")


def test_where_none_is_left_nothing_begins_afresh(alone, tmp_path):
    save(tmp_path, alone, 1)
    (tmp_path / "step_00000001/rank_00000.safetensors").write_bytes(b"")
    message = r"rank_00000.safetensors: 0 bytes of \d+; no valid checkpoint is left; choose another"
    with pytest.raises(comm.CollectiveInputError, match=message):
        found_in(tmp_path, alone)
    with pytest.raises(comm.CollectiveInputError, match=r"rank_00000\.safetensors: 0 bytes"):
        CheckpointManager(tmp_path, keep=2, dist_ctx=alone).find_resume_point(
            str(next(tmp_path.glob("step_*")))
        )
    assert found_in(tmp_path / "empty", alone) is None


def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(alone, tmp_path, monkeypatch):
    """As where a server is away for a moment: nothing is renamed, and no older checkpoint taken."""
    for step in (1, 2):
        save(tmp_path, alone, step)

    def unreadable(path: Path) -> Any:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(checkpoints_module, "compute_digest", unreadable)
    with pytest.raises(
        comm.CollectiveInputError, match=r"step_00000002/rank_00000\.safetensors: Input/output error"
    ):
        found_in(tmp_path, alone)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_bytes", unreadable)
    with pytest.raises(comm.CollectiveInputError, match=r"step_00000001/run\.json: Input/output error"):
        found_in(tmp_path, alone)
    monkeypatch.undo()
    assert found_in(tmp_path, alone).path.name == "step_00000002"


def test_facts_of_another_version_are_named(alone, tmp_path):
    """Whose digest is right."""
    save(tmp_path, alone, 1)
    folder = tmp_path / "step_00000001"
    content = msgspec.json.format(msgspec.json.encode({"number": 1, "step": "one"}), indent=1)
    sealed = {"format": 3, "digest": xxhash.xxh3_128_hexdigest(content), "content": msgspec.Raw(content)}
    (folder / "run.json").write_bytes(msgspec.json.encode(sealed))
    with pytest.raises(InputError, match=r"run\.json: of another version: .*step"):
        checkpoint.read_tensors(folder, "head")


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
        checkpoint.read_tensors(folder, "head")
        for name in ("run.json", "rank_00000.safetensors"):
            before = (folder / name).read_bytes()
            (folder / name).write_bytes(payload)
            with pytest.raises(InputError):
                checkpoint.read_tensors(folder, "head")
            (folder / name).write_bytes(before)
    assert not (tmp_path / "ran").exists()


def fails_on_one(folder: Path, error: Exception) -> tuple[str | None, str | None]:
    """A save in which the last rank's disk takes no more, and one that works: the problem, and what raised."""
    dist_ctx = comm.create_dist_context(CPU)

    def full(*arguments: Any) -> Any:
        raise error

    checkpoints, raised = CheckpointManager(folder, keep=2, dist_ctx=dist_ctx), None
    if dist_ctx.rank == dist_ctx.world_size - 1:
        writer.write_shard = full
    try:
        checkpoints.save(1, state_of(dist_ctx), {}, elapsed_seconds=0.0)
        outcome = checkpoints.wait()
    except RuntimeError as defect:
        outcome, raised = None, str(defect)
    finally:
        writer.write_shard = write_shard
    checkpoints.save(2, state_of(dist_ctx), {}, elapsed_seconds=0.0)
    assert checkpoints.wait().problem is None
    return (outcome.problem if outcome else None), raised


def test_a_full_disk_of_one_rank_fails_a_save_on_all_and_is_named(ranks, tmp_path):
    error = OSError(28, "No space left on device", "/disk/rank_00002.safetensors")
    told = ranks.run(3, fails_on_one, tmp_path, error)
    assert told == [("/disk/rank_00002.safetensors: No space left on device", None)] * 3
    assert names_in(tmp_path) == {"latest", "step_00000002"}


def test_a_defect_of_ours_in_a_save_is_raised_on_all_ranks(ranks, tmp_path):
    for problem, raised in ranks.run(2, fails_on_one, tmp_path, ZeroDivisionError("ours")):
        assert problem is None and "ZeroDivisionError: ours" in raised and "step 1" in raised


def test_tensors_that_do_not_fit_are_named(alone, tmp_path):
    save(tmp_path, alone, 1)
    found, checkpoints = found_in(tmp_path, alone), CheckpointManager(tmp_path, keep=2, dist_ctx=alone)
    for state, message in (
        (
            {"weight": torch.zeros(4, 2, 3)},
            r"weight is F32 \[4, 2, 3, 3\], the recipe requires F32 \[4, 2, 3\]",
        ),
        ({"half": torch.zeros(5)}, r"half is BF16 \[5\], the recipe requires F32 \[5\]"),
        ({"other": torch.zeros(1)}, "written by another version, without other"),
    ):
        with pytest.raises(comm.CollectiveInputError, match=message):
            checkpoints.load(found, state)
    with pytest.raises(TypeError, match=r"a\.b: found int, expected a tensor"):
        checkpoints.save(1, {"a": {"b": 3}}, {}, elapsed_seconds=0.0)


def test_steps_may_change_the_tensors_while_they_are_written(alone, tmp_path, monkeypatch):
    """What is saved is what they were; a second save waits for the first."""
    state = state_of(alone, seed=1)
    expected = state_of(alone, seed=1)
    checkpoints = CheckpointManager(tmp_path, keep=2, dist_ctx=alone)
    monkeypatch.setattr(
        writer, "write_shard", lambda *arguments: (changed.wait(60), write_shard(*arguments))[1]
    )
    changed = threading.Event()
    assert checkpoints.save(1, state, {}, elapsed_seconds=0.0) is None and checkpoints.poll() is None
    state["weight"].zero_()
    changed.set()
    assert checkpoints.save(2, state, {}, elapsed_seconds=0.0).step == 1
    assert checkpoints.wait().step == 2 and checkpoints.wait() is None
    loaded = zeros_like(expected)
    checkpoints.load(checkpoints.find_resume_point(str(tmp_path / "step_00000001")), loaded)
    assert_equal(loaded, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [1 << 50]}, r"expected a tensor of at most \d+ bytes, got shape \[1125899906842624\]"),
        ({"shape": [-1]}, "expected a tensor of at most"),
        (
            {"pieces": {"../other.safetensors": (0, 9)}},
            "expected files of the checkpoint, got '../other.safetensors'",
        ),
        ({"dtype": "F4"}, "expected one of F64, .*, got 'F4'"),
        ({"pieces": {"rank_00000.safetensors": (5, 2)}}, r"expected first and last row, got \(5, 2\)"),
        ({"pieces": {"rank_00000.safetensors": (-1, 2)}}, r"expected first and last row, got \(-1, 2\)"),
    ],
)
def test_a_manifest_of_a_stranger_allocates_and_reads_nothing_else(alone, tmp_path, change, message):
    """Its digest is right."""
    save(tmp_path, alone, 3)
    folder = tmp_path / "step_00000003"
    manifest = checkpoint.read_manifest(folder)
    tensors = {name: msgspec.structs.replace(it, **change) for name, it in manifest.tensors.items()}
    write_manifest(folder, msgspec.structs.replace(manifest, tensors=tensors))
    with pytest.raises(InputError, match=message):
        checkpoint.read_tensors(folder, "head")
