"""A run equals a run: stopped and resumed, killed, in lower precision; and what is refused."""

import json
import os
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from faces import write_pack
from runs import (
    CLASSES,
    IMAGES,
    SIZE,
    assert_refused,
    assert_same_bits,
    config_of,
    curve,
    trained,
    verification_of,
    whole,
)
from waiting import NoWaiting

from partialfc.config import Config
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import Manifest, folder, read_manifest
from partialfc.runtime.checkpoint.folder import CheckpointFolder
from partialfc.training import loop
from partialfc.training.run import Run, build_run


@pytest.fixture(scope="session")
def undisturbed(ranks, pack, tmp_path_factory):
    """A run of 30 steps at two world sizes: its loss curve, its final state, its folder."""
    runs = {}
    for world_size in (1, 3):
        config = config_of(pack, tmp_path_factory.mktemp("undisturbed"), checkpoint={"every": 15})
        state = whole(ranks.run(world_size, trained, config, None, True))
        runs[world_size] = curve(Path(config.output)), state, Path(config.output)
    return runs


@pytest.mark.parametrize("world_size", [1, 3])
def test_stopped_and_resumed_is_the_same_bit_for_bit(ranks, pack, tmp_path, undisturbed, world_size):
    config = config_of(pack, tmp_path, checkpoint={"every": 15})
    assert ranks.run(world_size, trained, config, 17) == [None] * world_size
    assert (tmp_path / "checkpoints/latest").resolve().name == "step_00000015"
    state = whole(ranks.run(world_size, trained, config))
    losses, expected, _ = undisturbed[world_size]
    assert curve(tmp_path) == losses and losses[-1] < losses[0]
    assert_same_bits(state, expected)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verification_before"] == verification_of(undisturbed[world_size][2], 0)


def test_resumed_from_a_named_checkpoint_is_the_same_too(ranks, pack, tmp_path, undisturbed):
    named = str(undisturbed[1][2] / "checkpoints/step_00000015")
    config = config_of(pack, tmp_path, checkpoint={"every": 4, "resume": named})
    ranks.run(1, trained, config, 22)
    assert_same_bits(whole(ranks.run(1, trained, config)), undisturbed[1][1])
    log = (tmp_path / "log.txt").read_text()  # the same command goes on from what it has saved since
    assert "at step 15 of 30" in log and "at step 20 of 30" in log


ROWS = {
    "decay in files": (
        {"unsampled": "decay", "moments": "bfloat16", "memory": "file"},
        {"name": "sgd", "nesterov": True, "lr": 0.02},
    ),
    "adamw in host memory": (
        {"centers": "bfloat16", "moments": "bfloat16", "memory": "host"},
        {"name": "adamw", "lr": 0.002, "ema": 0.9},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_any_kind_are_resumed_bit_for_bit(ranks, pack, tmp_path, name):
    """Against a run that was not stopped, with its rows on the device."""
    head, optim = ROWS[name]
    settings = {"optim": optim, "checkpoint": {"every": 8}, "train": {"length": 20}}
    on_device = config_of(pack, tmp_path / "device", head={**head, "memory": "device"}, **settings)
    config = config_of(pack, tmp_path / "run", head={**head, "folder": str(tmp_path / "rows")}, **settings)
    expected = whole(ranks.run(2, trained, on_device))
    assert ranks.run(2, trained, config, 13) == [None, None]
    assert_same_bits(whole(ranks.run(2, trained, config)), expected)
    assert curve(tmp_path / "run") == curve(tmp_path / "device")


def test_a_folder_for_rows_that_cannot_be_made_is_refused(ranks, pack, tmp_path):
    (tmp_path / "file").write_text("")
    head = {"memory": "file", "folder": str(tmp_path / "file/rows")}
    config = config_of(pack, tmp_path, head=head)
    assert_refused(ranks, 2, config, r"head.folder .*rows: Not a directory; wanted \d+ bytes for centers")


def test_what_a_run_leaves(undisturbed):
    _, _, output = undisturbed[3]
    names = {path.name for path in output.iterdir()}
    assert names == {
        ".lock",
        "recipe.yaml",
        "log.txt",
        "metrics.jsonl",
        "summary.json",
        "tensorboard",
        "checkpoints",
        "figures",
    }
    summary = json.loads((output / "summary.json").read_text())
    assert summary["steps"] == 30 and summary["seconds"] > 0 and summary["images_per_second"] > 0
    assert summary["loss"] == undisturbed[3][0][-1]
    scores = {"accuracy", "accuracy_std", "auc", "tar@far=1e-3", "tar@far=1e-4"}
    assert set(summary["verification"]["unseen"]) == set(summary["verification_before"]["unseen"]) == scores
    assert summary["verification"] == verification_of(output, 30)
    assert sorted(path.name for path in output.glob("checkpoints/*")) == [
        "latest",
        "step_00000015",
        "step_00000030",
    ]
    assert list((output / "tensorboard").iterdir())
    assert cv2.imread(str(output / "figures/run.png")).shape == (320, 1200, 3)
    log = (output / "log.txt").read_text()
    assert "115 images of 23 identities" in log and "step 30/30" in log and "unseen: accuracy" in log


def contents(folder: Path) -> dict[Path, bytes]:
    """Of every file but the lock, which says who was there last."""
    return {it: it.read_bytes() for it in folder.rglob("*") if it.is_file() and it.name != ".lock"}


def test_a_finished_run_that_is_started_again_stays_as_it_is(ranks, undisturbed, pack):
    _, state, output = undisturbed[1]
    before = contents(output)
    assert_same_bits(whole(ranks.run(1, trained, config_of(pack, output, checkpoint={"every": 15}))), state)
    assert contents(output) == before


def test_verification_does_not_depend_on_the_world_size(ranks, pack, tmp_path):
    outputs = [tmp_path / "one", tmp_path / "three"]
    for world_size, output in zip((1, 3), outputs, strict=True):
        ranks.run(world_size, trained, config_of(pack, output), 0)
    assert verification_of(outputs[0], 0) == verification_of(outputs[1], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train": {"batch": 48}},
            "train.batch 24 -> 48; wanted the same, another `output`, or checkpoint.ch",
        ),
        ({"backbone": {"width": 8}}, "made with other settings: backbone.width 4 -> 8"),
        ({"optim": {"name": "adamw"}}, "optim.name sgd -> adamw; .*optim.betas .none. -> "),
        ({"margin": {"margin": 0.5}}, "other settings: margin.margin 0.3 -> 0.5; wanted"),
        ({"optim": {"lr": 0.1, "precision": "bf16"}}, "optim.lr 0.02 -> 0.1; optim.precision fp32 -> bf16; "),
        ({"head": {"centers": "bfloat16"}}, "head.centers float32 -> bfloat16; wanted"),
        ({"train": {"length": 20}}, "train.length 30 -> 20"),
        (
            {"train": {"length": 20}, "checkpoint": {"changes": "allow"}},
            "20 steps, but .* has taken 30; wanted",
        ),
        ({"train": {"micro_batch": 4}}, "train.micro_batch 8 -> 4"),
        (
            {"head": {"centers": "bfloat16"}, "checkpoint": {"changes": "allow"}},
            "centers is F32 .* makes it BF16",
        ),
        (
            {"backbone": {"width": 8}, "checkpoint": {"changes": "allow"}},
            "conv1.weight is F32 .4, 3, 3, 3., the recipe makes it F32 .8, ",
        ),
        ({"checkpoint": {"resume": "never"}}, "never, but .*step_00000030 is there; name another `output`"),
        (
            {"checkpoint": {"resume": "nowhere"}},
            "nowhere: no checkpoint; wanted a folder step_. with run.json",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(ranks, pack, undisturbed, change, message):
    assert_refused(ranks, 3, config_of(pack, undisturbed[3][2], **change), message)


def test_a_change_that_is_allowed_is_written_down(ranks, pack, tmp_path, undisturbed):
    shutil.copytree(undisturbed[1][2], tmp_path, symlinks=True, dirs_exist_ok=True)
    sections = {"train": {"length": 34}, "optim": {"lr": 0.01}, "report": {"every": 2}}
    changed = config_of(pack, tmp_path, checkpoint={"changes": "allow"}, **sections)
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


def test_another_pack_of_the_same_size_is_noticed(ranks, pack, tmp_path):
    write_pack(tmp_path / "pack", CLASSES, IMAGES, SIZE)
    config = config_of(tmp_path / "pack", tmp_path / "run", train={"length": 2})
    ranks.run(1, trained, config)
    write_pack(tmp_path / "pack", CLASSES, IMAGES, SIZE, first=1000)
    assert_refused(ranks, 1, config, "made with other settings: the pack's fingerprint .* -> ")


def test_what_is_normalised_together_stays_at_another_world_size(ranks, pack, tmp_path):
    """Without train.micro_batch it is a rank's share when the run begins: 8 of 24 at three ranks."""
    expected, config = (
        config_of(pack, tmp_path / name, checkpoint={"every": 8}) for name in ("three", "run")
    )
    ranks.run(3, trained, expected)
    ranks.run(3, trained, config, 10)
    ranks.run(1, trained, config)
    np.testing.assert_allclose(curve(tmp_path / "run"), curve(tmp_path / "three"), rtol=5e-3)
    assert "micro_batch: 8" in (tmp_path / "run/recipe.yaml").read_text()


def test_a_checkpoint_of_an_earlier_version_is_refused(ranks, pack, tmp_path):
    folder = tmp_path / "checkpoints/step_00000030"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"step": 30, "seconds": 1.5, "layout": 2}')
    message = "step_00000030/run.json: of an earlier version, which wrote no digests; no checkpoint is left"
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
    assert f"not taken: {shard}: damaged" in log and "at step 15 of 30" in log


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


def test_a_world_size_that_does_not_divide_the_batch_is_refused(ranks, pack, tmp_path):
    config = config_of(pack, tmp_path, train={"batch": 25})
    assert_refused(ranks, 2, config, "train.batch 25 cannot be dealt out to 2 ranks; wanted one of 1, 5$")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains(ranks, pack, tmp_path, precision):
    config = config_of(pack, tmp_path, optim={"precision": precision, "lr": 0.05})
    state = whole(ranks.run(2, trained, config))
    assert all(value.isfinite().all() for value in state.values())
    losses = curve(tmp_path)
    assert sum(losses[-5:]) < sum(losses[:5])


def step_without_waiting(config: Config) -> None:
    run = build_run(config, comm.ranks_of(torch.device("cpu")))
    for batch in run.loader.batches(0, 2):
        with NoWaiting():
            loop.train_step(run, batch, run.head.prepare(batch.labels, run.step))
        run.step += 1


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_never_waits_for_the_device(ranks, pack, tmp_path, precision, micro_batch):
    train_section = {"batch": 24, "length": 2, "micro_batch": micro_batch}
    ranks.run(
        2,
        step_without_waiting,
        config_of(pack, tmp_path, train=train_section, optim={"precision": precision, "ema": 0.9}),
    )


def overflow_on_one_rank(
    config: Config,
) -> tuple[bool, float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A step in which the last rank's images are not finite: whether it was taken, the loss scale, before and after."""
    ranks = comm.ranks_of(torch.device("cpu"))
    run = build_run(config, ranks)
    batch = next(run.loader.batches(0, 1))
    loop.train_step(run, batch, run.head.prepare(batch.labels, 0))  # so that there is momentum
    before = state_of(run)
    if ranks.rank == 1:
        run.backbone.register_forward_hook(lambda module, args, output: output * torch.inf)
    taken = loop.train_step(run, batch, run.head.prepare(batch.labels, 0)).finite.item()
    return taken, run.optimizer.loss_scale.value.item(), before, state_of(run)


def state_of(run: Run) -> dict[str, torch.Tensor]:
    state = run.backbone.state_dict() | run.head.centers.tensors
    momenta = {f"momentum of {name}": it["momentum_buffer"] for name, it in run.optimizer.moments.items()}
    return {name: value.clone() for name, value in (state | momenta).items() if "num_batches" not in name}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(ranks, pack, tmp_path, precision):
    config = config_of(pack, tmp_path, optim={"precision": precision, "lr": 0.01})
    for taken, scale, before, after in ranks.run(2, overflow_on_one_rank, config):
        assert not taken and (scale == 1 if precision == "fp32" else scale < 2**16)
        assert_same_bits(after, before)


def test_a_run_too_long_to_catch_up_on_is_refused(ranks, pack, tmp_path):
    sections = {"head": {"sample_rate": 0.3, "unsampled": "decay"}, "train": {"length": 5_000_000}}
    message = r"head.unsampled: decay takes runs of up to 4,194,304 steps; wanted hold"
    assert_refused(ranks, 1, config_of(pack, tmp_path, **sections), message)
