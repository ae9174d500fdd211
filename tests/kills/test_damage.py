"""Every file of a run's newest checkpoint, damaged in turn: the run goes on from the one before, and ends with the same bits."""

import shutil

import pytest
from helpers.damage import damages
from helpers.runs import assert_same_bits, config_of, curve, trained, whole

pytestmark = pytest.mark.kills


@pytest.mark.parametrize("name", ["run.json", "rank_00000.safetensors", "rank_00001.safetensors"])
def test_training_goes_on_from_the_checkpoint_before(ranks, pack, tmp_path, name):
    sections = {"checkpoint": {"every": 4}, "train": {"length": 12}}
    expected = whole(ranks.run(2, trained, config_of(pack, tmp_path / "undisturbed", **sections)))
    ranks.run(2, trained, config_of(pack, tmp_path / "stopped", **sections), 10)
    found = 0
    for damaged in damages(tmp_path / "stopped/checkpoints/step_00000008" / name):
        shutil.copytree(tmp_path / "stopped", tmp_path / "run", symlinks=True)
        path = tmp_path / "run/checkpoints/step_00000008" / name
        path.unlink() if damaged is None else path.write_bytes(damaged)
        state = whole(ranks.run(2, trained, config_of(pack, tmp_path / "run", **sections)))
        assert_same_bits(state, expected)
        assert curve(tmp_path / "run") == curve(tmp_path / "undisturbed")
        assert "at step 4 of 12" in (tmp_path / "run/log.txt").read_text()
        shutil.rmtree(tmp_path / "run")
        found += 1
    assert found == 46
