"""A run that goes on: what must be the same, what is written down, and what a kill or a damage leaves."""

import os
import re
import shutil
import signal
from multiprocessing import get_context
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.faces import write_pack
from helpers.runs import (
    CLASSES,
    IMAGES,
    SIZE,
    assert_refused,
    assert_same_bits,
    config_of,
    curve,
    trained,
    whole,
)

from partialfc.config import Config
from partialfc.runtime.checkpoint import Manifest, folder, read_manifest
from partialfc.runtime.checkpoint.folder import CheckpointFolder
from partialfc.runtime.checkpoint.manifest import write_manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train": {"global_batch_size": 48}},
            "train.global_batch_size 24 -> 48; restore the config, choose another `output`, or set checkpoint.on",
        ),
        ({"backbone": {"width": 8}}, "written with a different config: backbone.width 4 -> 8"),
        ({"optim": {"name": "adamw"}}, "optim.name sgd -> adamw; .*optim.betas .none. -> "),
        ({"loss": {"margin": 0.5}}, "different config: loss.margin 0.3 -> 0.5; restore"),
        (
            {"optim": {"lr": 0.1, "precision": "bfloat16"}},
            "optim.lr 0.02 -> 0.1; optim.precision float32 -> bfloat16; ",
        ),
        ({"head": {"centers_dtype": "bfloat16"}}, "head.centers_dtype float32 -> bfloat16; restore"),
        ({"train": {"length": 20}}, "train.length 30 -> 20"),
        (
            {"train": {"length": 20}, "checkpoint": {"on_config_change": "allow"}},
            "20 steps, but .* has taken 30; expected",
        ),
        ({"train": {"micro_batch_size": 4}}, "train.micro_batch_size 8 -> 4"),
        (
            {"head": {"centers_dtype": "bfloat16"}, "checkpoint": {"on_config_change": "allow"}},
            "centers is F32 .* requires BF16",
        ),
        (
            {"backbone": {"width": 8}, "checkpoint": {"on_config_change": "allow"}},
            "conv1.weight is F32 .4, 3, 3, 3., the recipe requires F32 .8, ",
        ),
        ({"checkpoint": {"resume": "never"}}, "never, but .*step_00000030 exists; choose another `output`"),
        (
            {"checkpoint": {"resume": "nowhere"}},
            "nowhere: no checkpoint; expected a folder step_. with run.json",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(ranks, pack, undisturbed, change, message):
    assert_refused(ranks, 3, config_of(pack, undisturbed[3][2], **change), message)


def test_a_checkpoint_with_old_keys_is_refused_with_the_new_ones(ranks, pack, tmp_path, undisturbed):
    shutil.copytree(undisturbed[1][2], tmp_path, symlinks=True, dirs_exist_ok=True)
    saved = (tmp_path / "checkpoints/latest").resolve()
    manifest = read_manifest(saved)
    manifest.about["config"]["margin"] = manifest.about["config"].pop("loss")
    write_manifest(saved, manifest)
    message = "margin.name: unknown key; since 0.3 it is loss.name"
    assert_refused(ranks, 1, config_of(pack, tmp_path), message)


def test_a_change_that_is_allowed_is_written_down(ranks, pack, tmp_path, undisturbed):
    shutil.copytree(undisturbed[1][2], tmp_path, symlinks=True, dirs_exist_ok=True)
    sections = {"train": {"length": 34}, "optim": {"lr": 0.01}, "log": {"every": 2}}
    changed = config_of(pack, tmp_path, checkpoint={"on_config_change": "allow"}, **sections)
    ranks.run(1, trained, changed)
    told = ["train.length 30 -> 34", "optim.lr 0.02 -> 0.01"]
    text = (tmp_path / "recipe.yaml").read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        f"# changed after step 30: {one}" for one in told
    ]
    assert all(f"changed: {one}" in (tmp_path / "log.txt").read_text() for one in told)
    manifest = read_manifest(tmp_path / "checkpoints/latest")
    assert manifest.step == 34 and manifest.about["history"] == [[30, told]]
    assert manifest.about["config"]["optim"]["lr"] == 0.01


@pytest.mark.parametrize(
    ("brought_in", "begins"),
    [
        ({"head": {"sampling": "hard", "hard_neighbors": 4}}, ["neighbors", "neighbors_made", "neighbors_made_in"]),
        ({"head": {"unsampled": "decay"}}, ["last_step", "learning_rates"]),
        ({"optim": {"name": "adamw", "lr": 1e-3}}, ["first_moment", "second_moment", "counts"]),
        ({"optim": {"ema_decay": 0.9}}, []),
    ],
)  # fmt: skip
def test_what_a_changed_setting_brings_in_begins_there(
    ranks, pack, tmp_path, undisturbed, brought_in, begins
):
    """And is saved, and gone on with; at another number of ranks, too."""
    shutil.copytree(undisturbed[3][2], tmp_path, symlinks=True, dirs_exist_ok=True)
    allowed = {"checkpoint": {"on_config_change": "allow"}, **brought_in}
    ranks.run(1, trained, config_of(pack, tmp_path, train={"length": 32}, **allowed))
    ranks.run(3, trained, config_of(pack, tmp_path, train={"length": 34}, **allowed))
    log = (tmp_path / "log.txt").read_text()
    assert re.findall(r"head\.(\w+): not in the checkpoint; initialized", log) == begins, log
    assert read_manifest(tmp_path / "checkpoints/latest").step == 34 and np.isfinite(curve(tmp_path)).all()


def test_a_moving_average_that_begins_late_begins_as_the_network(ranks, pack, tmp_path, undisturbed):
    shutil.copytree(undisturbed[1][2], tmp_path, symlinks=True, dirs_exist_ok=True)
    late = {
        "train": {"length": 31},
        "checkpoint": {"on_config_change": "allow"},
        "optim": {"lr": 0.02, "ema_decay": 0.999},
    }
    before = undisturbed[1][1]
    (state,) = ranks.run(1, trained, config_of(pack, tmp_path, **late))
    share = 1 - 31 / 40  # of the network in an average that begins at step 30
    expected = before["conv1.weight"] + share * (state["conv1.weight"] - before["conv1.weight"])
    torch.testing.assert_close(state["average conv1.weight"], expected)


def test_another_pack_of_the_same_size_is_noticed(ranks, pack, tmp_path):
    write_pack(tmp_path / "pack", CLASSES, IMAGES, SIZE)
    config = config_of(tmp_path / "pack", tmp_path / "run", train={"length": 2})
    ranks.run(1, trained, config)
    write_pack(tmp_path / "pack", CLASSES, IMAGES, SIZE, first=1000)
    assert_refused(ranks, 1, config, "different config: the files of the pack /.* \\(fingerprint .* -> ")


def test_what_is_normalised_together_stays_at_another_world_size(ranks, pack, tmp_path):
    """Without train.micro_batch_size it is a rank's share when the run begins: 8 of 24 at three ranks."""
    expected, config = (
        config_of(pack, tmp_path / name, checkpoint={"every": 8}) for name in ("three", "run")
    )
    ranks.run(3, trained, expected)
    ranks.run(3, trained, config, 10)
    ranks.run(1, trained, config)
    np.testing.assert_allclose(curve(tmp_path / "run"), curve(tmp_path / "three"), rtol=5e-3)
    assert "micro_batch_size: 8" in (tmp_path / "run/recipe.yaml").read_text()


def test_a_checkpoint_of_an_earlier_version_is_refused(ranks, pack, tmp_path):
    folder = tmp_path / "checkpoints/step_00000030"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"step": 30, "seconds": 1.5, "layout": 2}')
    message = r"step_00000030/run.json: written by an earlier version, .* with that version; no valid checkpoint is left"
    assert_refused(ranks, 2, config_of(pack, tmp_path), message)


def test_the_newest_checkpoint_that_is_whole_is_taken(ranks, pack, tmp_path, undisturbed):
    """What is damaged is told, renamed, and neither counted nor removed; the end is that of the undisturbed run."""
    shutil.copytree(undisturbed[1][2], tmp_path, symlinks=True, dirs_exist_ok=True)
    shard = next((tmp_path / "checkpoints/step_00000030").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    state = whole(ranks.run(1, trained, config_of(pack, tmp_path, checkpoint={"every": 15})))
    losses, expected, _ = undisturbed[1]
    assert_same_bits(state, expected)
    assert curve(tmp_path) == losses
    names = sorted(path.name.partition(".damaged")[0] for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", "step_00000015", "step_00000030", "step_00000030"]
    log = (tmp_path / "log.txt").read_text()
    assert f"checkpoint skipped: {shard}: damaged" in log and "at step 15 of 30" in log


def test_a_process_killed_while_it_removes_an_old_checkpoint_leaves_no_half_of_one(ranks, pack, tmp_path):
    config = config_of(pack, tmp_path, checkpoint={"every": 1, "keep": 1}, train={"length": 3})
    ranks.run(1, trained_without_removing, config, 2)
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {"latest", "step_00000002", ".step_00000001.removed.draft"} <= left
    ranks.run(1, trained, config)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"latest", "step_00000003"}


def trained_without_removing(config: Config, stop: int) -> None:
    """As if killed where the removal would begin."""
    with mock.patch.object(folder.shutil, "rmtree"):
        trained(config, stop)


def save_and_be_killed(config: Config, folder: str) -> None:
    """Ends by a signal within its second save, when all is written but nothing is in place."""
    publish = CheckpointFolder.publish

    def killed_the_second_time(self: CheckpointFolder, manifest: Manifest, *, best: bool) -> None:
        if manifest.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        publish(self, manifest, best=best)

    with mock.patch.object(CheckpointFolder, "publish", killed_the_second_time):
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        trained(config)


def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(ranks, pack, tmp_path):
    config = config_of(pack, tmp_path / "run", checkpoint={"every": 1}, train={"length": 4})
    process = get_context("spawn").Process(target=save_and_be_killed, args=(config, str(tmp_path)))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    folder = tmp_path / "run/checkpoints"
    assert {path.name for path in folder.iterdir()} == {"latest", "step_00000001", ".step_00000002.draft"}
    ranks.run(1, trained, config)
    assert len(curve(tmp_path / "run")) == 4 and "at step 1 of 4" in (tmp_path / "run/log.txt").read_text()
    assert {path.name for path in folder.iterdir()} == {"latest", "step_00000003", "step_00000004"}
