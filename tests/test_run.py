"""A run equals a run: stopped and resumed, killed, in lower precision; and what is refused."""

import json
import os
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import cv2
import pytest
import torch
import torch.distributed as dist
from runs import assert_refused, assert_same_bits, config_of, curve, trained, verification_of, whole
from waiting import NoWaiting

from partialfc.config import Config
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import Checkpoints
from partialfc.training import loop
from partialfc.training.run import Run


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
    config = config_of(pack, tmp_path, checkpoint={"every": 15, "resume": named})
    assert_same_bits(whole(ranks.run(1, trained, config)), undisturbed[1][1])


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


def test_a_finished_run_that_is_started_again_stays_as_it_is(ranks, undisturbed, pack):
    _, state, output = undisturbed[1]
    before = json.loads((output / "summary.json").read_text())
    assert_same_bits(whole(ranks.run(1, trained, config_of(pack, output))), state)
    after = json.loads((output / "summary.json").read_text())
    assert {**after, "seconds": 0, "images_per_second": 0} == {**before, "seconds": 0, "images_per_second": 0}


def test_verification_does_not_depend_on_the_world_size(ranks, pack, tmp_path):
    outputs = [tmp_path / "one", tmp_path / "three"]
    for world_size, output in zip((1, 3), outputs, strict=True):
        ranks.run(world_size, trained, config_of(pack, output), 0)
    assert verification_of(outputs[0], 0) == verification_of(outputs[1], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"batch": 48}}, "made with batch 24, the recipe says 48"),
        ({"backbone": {"width": 8}}, "made with backbone .*'width': 4.* the recipe says .*'width': 8"),
        ({"optim": {"name": "adamw"}}, "made with optim.name sgd, the recipe says adamw"),
        ({"head": {"centers": "bfloat16"}}, "made with head.centers float32, the recipe says bfloat16"),
        ({"head": {"moments": "none"}}, "made with head.moments float32, the recipe says none"),
        ({"head": {"unsampled": "decay"}}, "made with head.unsampled hold, the recipe says decay"),
        ({"checkpoint": {"resume": "never"}}, "never, but .*step_00000030 is there; name another `output`"),
        ({"checkpoint": {"resume": "nowhere"}}, "nowhere is no checkpoint; wanted auto, never or a folder"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(ranks, pack, undisturbed, change, message):
    assert_refused(ranks, 2, config_of(pack, undisturbed[3][2], **change), message)


def test_a_checkpoint_of_an_earlier_version_is_refused(ranks, pack, tmp_path, undisturbed):
    shutil.copytree(undisturbed[1][2], tmp_path, symlinks=True, dirs_exist_ok=True)
    path = tmp_path / "checkpoints/step_00000030/run.json"
    facts = json.loads(path.read_text())
    del facts["optim.ema"]
    path.write_text(json.dumps(facts))
    message = "step_00000030: of an earlier version, which did not write optim.ema; name another `output`"
    assert_refused(ranks, 2, config_of(pack, tmp_path), message)


def test_a_damaged_checkpoint_is_named(ranks, pack, tmp_path, undisturbed):
    shutil.copytree(undisturbed[1][2], tmp_path, symlinks=True, dirs_exist_ok=True)
    next((tmp_path / "checkpoints/step_00000030").glob("*.distcp")).unlink()
    assert_refused(ranks, 2, config_of(pack, tmp_path), r"checkpoint .*step_00000030: rank 0: .*distcp")


def test_a_process_killed_while_it_removes_an_old_checkpoint_leaves_no_half_of_one(ranks, pack, tmp_path):
    config = config_of(pack, tmp_path, checkpoint={"every": 1, "keep": 1}, train={"length": 3})
    ranks.run(1, trained_without_removing, config, 2)
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"latest", "step_00000002", ".step_00000001.removed.draft"}
    ranks.run(1, trained, config)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"latest", "step_00000003"}


def trained_without_removing(config: Config, stop: int) -> None:
    """As if killed where the removal would begin."""
    with mock.patch.object(shutil, "rmtree"):
        trained(config, stop)


def save_and_be_killed(config: Config, folder: str) -> None:
    """Ends by a signal within its second save, when all is written but nothing is in place."""
    publish = Checkpoints._publish

    def killed_the_second_time(checkpoints: Checkpoints, draft: Path, path: Path) -> None:
        if path.name == "step_00000002":
            os.kill(os.getpid(), signal.SIGKILL)
        publish(checkpoints, draft, path)

    with mock.patch.object(Checkpoints, "_publish", killed_the_second_time):
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        trained(config)


def test_damaged_facts_of_a_checkpoint_are_named(ranks, pack, tmp_path, undisturbed):
    shutil.copytree(undisturbed[1][2], tmp_path, symlinks=True, dirs_exist_ok=True)
    for content in ("{", "[]"):
        (tmp_path / "checkpoints/step_00000030/run.json").write_text(content)
        assert_refused(ranks, 1, config_of(pack, tmp_path), r"step_00000030: run.json: ")


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
    run = loop.build_run(config, comm.ranks_of(torch.device("cpu")))
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
    run = loop.build_run(config, ranks)
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
