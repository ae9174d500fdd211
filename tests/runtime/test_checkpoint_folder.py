"""Which checkpoints stay, and which go, whatever the clock says; and what is no checkpoint."""

import os

from helpers.checkpoints import found_in, names_in, save

from partialfc.runtime.checkpoint import CheckpointManager


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
