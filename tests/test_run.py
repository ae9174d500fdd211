"""A run equals a run: stopped and resumed, killed, in lower precision; and what is refused."""

import json
import re
from pathlib import Path

import cv2
import pytest
import torch
from helpers.runs import (
    assert_refused,
    assert_same_bits,
    config_of,
    curve,
    trained,
    verification_of,
    whole,
)
from helpers.waiting import NoWaiting

from partialfc.config import Config
from partialfc.runtime import comm
from partialfc.training import loop
from partialfc.training.run import Run, build_run


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
    "decay in host memory": (
        {"unsampled": "decay", "optim_state_dtype": "bfloat16", "memory": "host"},
        {"name": "sgd", "nesterov": True, "lr": 0.02},
    ),
    "adamw in host memory": (
        {"centers_dtype": "bfloat16", "optim_state_dtype": "bfloat16", "memory": "host"},
        {"name": "adamw", "lr": 0.002, "ema_decay": 0.9},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_any_kind_are_resumed_bit_for_bit(ranks, pack, tmp_path, name):
    """Against a run that was not stopped, with its rows on the device."""
    head, optim = ROWS[name]
    settings = {"optim": optim, "checkpoint": {"every": 8}, "train": {"length": 20}}
    on_device = config_of(pack, tmp_path / "device", head={**head, "memory": "device"}, **settings)
    config = config_of(pack, tmp_path / "run", head=head, **settings)
    expected = whole(ranks.run(2, trained, on_device))
    assert ranks.run(2, trained, config, 13) == [None, None]
    assert_same_bits(whole(ranks.run(2, trained, config)), expected)
    assert curve(tmp_path / "run") == curve(tmp_path / "device")


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
    assert 0 < summary["evaluation_seconds"] < summary["seconds"]
    assert re.search(r"evaluation took \d+% of the run time\n", (output / "log.txt").read_text())
    assert summary["loss"] == undisturbed[3][0][-1]
    scores = {"accuracy", "accuracy_std", "auc", "threshold", "threshold_far"}
    scores |= {f"{name}_{end}" for name in ("accuracy", "auc") for end in ("low", "high")}
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


def test_a_world_size_that_does_not_divide_the_batch_is_refused(ranks, pack, tmp_path):
    config = config_of(pack, tmp_path, train={"global_batch_size": 25})
    assert_refused(
        ranks, 2, config, "train.global_batch_size 25 cannot be split over 2 ranks; expected one of 1, 5$"
    )


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_trains(ranks, pack, tmp_path, precision):
    config = config_of(pack, tmp_path, optim={"precision": precision, "lr": 0.05})
    state = whole(ranks.run(2, trained, config))
    assert all(value.isfinite().all() for value in state.values())
    losses = curve(tmp_path)
    assert sum(losses[-5:]) < sum(losses[:5])


def step_without_waiting(config: Config) -> None:
    run = build_run(config, comm.create_dist_context(torch.device("cpu")))
    for batch in run.loader.batches(0, 2):
        with NoWaiting():
            loop.train_step(run, batch, run.head.prepare(batch.labels, run.step))
        run.step += 1


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_never_waits_for_the_device(ranks, pack, tmp_path, precision, micro_batch):
    train_section = {"global_batch_size": 24, "length": 2, "micro_batch_size": micro_batch}
    ranks.run(
        2,
        step_without_waiting,
        config_of(pack, tmp_path, train=train_section, optim={"precision": precision, "ema_decay": 0.9}),
    )


def overflow_on_one_rank(
    config: Config,
) -> tuple[bool, float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A step in which the last rank's images are not finite: whether it was taken, the loss scale, before and after."""
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    run = build_run(config, dist_ctx)
    batch = next(run.loader.batches(0, 1))
    loop.train_step(run, batch, run.head.prepare(batch.labels, 0))  # so that there is momentum
    before = state_of(run)
    if dist_ctx.rank == 1:
        run.backbone.register_forward_hook(lambda module, args, output: output * torch.inf)
    taken = loop.train_step(run, batch, run.head.prepare(batch.labels, 0)).is_finite.item()
    return taken, run.optimizer.loss_scale.value.item(), before, state_of(run)


def state_of(run: Run) -> dict[str, torch.Tensor]:
    state = run.backbone.state_dict() | run.head.centers.tensors
    momenta = {f"momentum of {name}": it["momentum_buffer"] for name, it in run.optimizer.state.items()}
    return {name: value.clone() for name, value in (state | momenta).items() if "num_batches" not in name}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(ranks, pack, tmp_path, precision):
    config = config_of(pack, tmp_path, optim={"precision": precision, "lr": 0.01})
    for taken, scale, before, after in ranks.run(2, overflow_on_one_rank, config):
        assert not taken and (scale == 1 if precision == "float32" else scale < 2**16)
        assert_same_bits(after, before)


def test_a_run_too_long_to_catch_up_on_is_refused(ranks, pack, tmp_path):
    sections = {"head": {"sample_rate": 0.3, "unsampled": "decay"}, "train": {"length": 5_000_000}}
    message = r"head.unsampled: decay supports runs of up to 4,194,304 steps; expected hold"
    assert_refused(ranks, 1, config_of(pack, tmp_path, **sections), message)
