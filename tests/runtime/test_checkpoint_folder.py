"""Which checkpoints stay, and which go, whatever the clock says; and what is no checkpoint."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.checkpoints import found_in, names_in, save, state_of

from partialfc.runtime.checkpoint import CheckpointManager, read_manifest


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
    assert CheckpointManager(tmp_path, keep=1, dist_ctx=alone).broadcast_best_score() == 0.9
    save(tmp_path, alone, 5, keep=1, score=0.95, best=True)
    assert names_in(tmp_path) == {"best", "latest", "step_00000005"}


def test_what_is_no_checkpoint_is_left_alone(alone, tmp_path):
    (tmp_path / "step_99").mkdir()
    (tmp_path / "step_of_mine").mkdir()
    for step in (1, 2, 3):
        save(tmp_path, alone, step)
    assert names_in(tmp_path) == {"latest", "step_00000002", "step_00000003", "step_99", "step_of_mine"}
    (tmp_path / "step_98").write_text("a file")
    found = found_in(tmp_path, alone)
    assert found.path.name == "step_00000003"
    assert found.problems == [
        f"{tmp_path}/{name}: no checkpoint; expected a folder step_* with run.json in it, or a run's"
        for name in ("step_98", "step_99")
    ]


def test_what_is_no_checkpoint_and_in_the_way_is_set_aside(alone, tmp_path):
    (tmp_path / "step_00000001").mkdir()
    (tmp_path / "step_00000001/mine").write_text("mine")
    save(tmp_path, alone, 1)
    assert found_in(tmp_path, alone).path.name == "step_00000001"
    (aside,) = tmp_path.glob("step_00000001.damaged.*")
    assert (aside / "mine").read_text() == "mine"


def test_a_checkpoint_that_was_moved_and_linked_to_is_not_removed(alone, tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "disk"
    elsewhere.mkdir()
    save(folder, alone, 1)
    shutil.move(folder / "step_00000001", elsewhere)
    (folder / "step_00000001").symlink_to(elsewhere / "step_00000001")
    assert found_in(folder, alone).path.name == "step_00000001"
    assert save(folder, alone, 2) == []
    assert save(folder, alone, 3) == [f"not removed: {elsewhere}/step_00000001; the link to it was"]
    assert names_in(folder) == {"latest", "step_00000002", "step_00000003"}
    assert (elsewhere / "step_00000001/run.json").exists()


def test_a_step_that_is_a_link_is_saved_again(alone, tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "disk"
    elsewhere.mkdir()
    save(folder, alone, 1)
    shutil.move(folder / "step_00000001", elsewhere)
    (folder / "step_00000001").symlink_to(elsewhere / "step_00000001")
    assert save(folder, alone, 1) == [f"not removed: {elsewhere}/step_00000001; the link to it was"]
    assert not (folder / "step_00000001").is_symlink()


def test_a_folder_on_another_disk(alone, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    for step in (1, 2, 3):
        assert save(tmp_path / "run", alone, step) == []
    assert names_in(tmp_path / "disk") == {"latest", "step_00000002", "step_00000003"}


@pytest.mark.parametrize("name", ["latest", "best"])
def test_a_copy_without_links(alone, tmp_path, name):
    """`cp -rL` and object stores copy what `latest` and `best` link to."""
    save(tmp_path / "first", alone, 1, score=0.5, best=True)
    shutil.copytree(tmp_path / "first", tmp_path / "second", symlinks=False)
    folder = tmp_path / "second"
    assert CheckpointManager(folder, keep=2, dist_ctx=alone).broadcast_best_score() == 0.5
    warnings = save(folder, alone, 2, score=0.6, best=True)
    (aside,) = folder.glob(f"{name}.copied.*")
    assert f"{folder}/{name}: expected a link, found a folder; renamed to {aside.name}" in warnings
    assert (folder / name).resolve().name == "step_00000002"
    assert save(folder, alone, 3) == []


@pytest.mark.parametrize("name", ["latest", "best"])
def test_a_link_that_was_deleted_or_dangles(alone, tmp_path, name):
    save(tmp_path, alone, 1, score=0.5, best=True)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("nowhere")
    assert save(tmp_path, alone, 2, score=0.6, best=True) == []
    (tmp_path / name).unlink()
    assert save(tmp_path, alone, 3, score=0.7, best=True) == []
    assert (tmp_path / name).resolve().name == "step_00000003"


def test_what_cannot_be_removed_is_named_once_and_saving_continues(alone, tmp_path, monkeypatch):
    """Files of another user, or on a disk that was remounted read-only."""

    def refuse(path, remove=shutil.rmtree):
        if "step_00000001" in path.name:
            raise PermissionError(13, "Permission denied", str(path))
        remove(path)

    monkeypatch.setattr("partialfc.runtime.checkpoint.folder.shutil.rmtree", refuse)
    checkpoints = CheckpointManager(tmp_path, keep=1, dist_ctx=alone)
    told = []
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(alone, seed=step), {"seed": step}, elapsed_seconds=1.0)
        outcome = checkpoints.wait()
        assert outcome.problem is None
        told += outcome.warnings
    assert told == [f"not removed: {tmp_path}/.step_00000001.removed.draft: Permission denied"]
    assert found_in(tmp_path, alone).manifest.step == 3


def test_a_checkpoint_that_cannot_be_renamed_or_read_is_named(alone, tmp_path, monkeypatch):
    """A mount point, and a folder of another user."""
    save(tmp_path, alone, 1)
    save(tmp_path, alone, 2)

    def refuse(path, target, replace=Path.replace):
        if path.name == "step_00000001":
            raise OSError(16, "Device or resource busy", str(path))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    told = save(tmp_path, alone, 3, keep=1)
    assert f"not removed: {tmp_path}/step_00000001: Device or resource busy" in told
    monkeypatch.undo()

    def unreadable(folder, read=read_manifest):
        if folder.name == "step_00000001":
            raise PermissionError(13, "Permission denied", str(folder / "run.json"))
        return read(folder)

    monkeypatch.setattr("partialfc.runtime.checkpoint.folder.read_manifest", unreadable)
    told = save(tmp_path, alone, 4)
    assert told == [f"{tmp_path}/step_00000001/run.json: Permission denied"]
    assert (tmp_path / "step_00000001").exists()


def test_a_disk_without_links(alone, tmp_path, monkeypatch):
    def refuse(path, target):
        raise OSError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert save(tmp_path, alone, 1) == [
        f"{tmp_path}/latest: Operation not permitted; it does not link to step_00000001"
    ]
    assert found_in(tmp_path, alone).manifest.step == 1
