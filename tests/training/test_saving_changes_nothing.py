"""Saving, evaluating and reporting leave a run as it was, to the bit; replicas are equal on all ranks, or the run ends."""

import random
from unittest import mock

import msgspec
import pytest
import torch
from helpers.runs import assert_same_bits, config_of, trained, whole

from partialfc.runtime import comm
from partialfc.training import loop
from partialfc.training.checkpoint_scheduler import CheckpointScheduler
from partialfc.training.health import DivergenceError, check_replicas

STEPS = 14


def trained_with(config, saves: set[int], evaluations: set[int], stop: int | None = None):
    """What a rank ends with, where the run is saved and evaluated after these steps, and dies before step `stop`."""
    after_step, evaluation_due = CheckpointScheduler.after_step, loop._is_evaluation_due

    def and_save(saving, noticed, seconds, scores):
        saving._due |= saving.run.step in saves
        after_step(saving, noticed, seconds, scores)

    with (
        mock.patch.object(CheckpointScheduler, "after_step", and_save),
        mock.patch.object(
            loop, "_is_evaluation_due", lambda run: run.step in evaluations or evaluation_due(run)
        ),
    ):
        return trained(config, stop)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_saves_evaluations_and_reports_change_no_bit(ranks, pack, tmp_path, world_size, ema):
    def config(name: str, **report: int):
        sections = {"train": {"length": STEPS, "micro_batch_size": 4}, "checkpoint": {"every": 0}}
        optim = {"name": "sgd", "lr": 0.02, "ema_decay": ema}
        return config_of(pack, tmp_path / name, optim=optim, log={"every": STEPS, **report}, **sections)

    draw = random.Random(world_size)
    some = [set(draw.sample(range(1, STEPS), 5)) for _ in range(2)]
    expected = whole(ranks.run(world_size, trained_with, config("plain"), set(), set()))
    busy = config("busy", every=1, histograms_every=2)
    assert_same_bits(whole(ranks.run(world_size, trained_with, busy, *some)), expected)
    stopped = config("stopped")
    last = max(some[0])
    ranks.run(world_size, trained_with, stopped, *some, last)
    assert_same_bits(whole(ranks.run(world_size, trained_with, stopped, set(), set())), expected)


def diverged(config, rank: int) -> str:
    """What a run says in which the last bit of a weight changes on one rank after the third step."""

    def and_flip(run, batch, step, train_step=loop.train_step):
        metrics = train_step(run, batch, step)
        if run.step == 2 and run.dist_ctx.rank == rank:
            weight = run.backbone.conv1.weight.data[0, 0, 0, 0]
            weight.copy_(torch.nextafter(weight, weight + 1))
        return metrics

    with mock.patch.object(loop, "train_step", and_flip):
        try:
            trained(config)
        except DivergenceError as error:
            return str(error)
    return "nothing"


def test_a_replica_that_differs_ends_the_run_and_is_named(ranks, pack, tmp_path):
    config = config_of(pack, tmp_path, train={"length": 8, "micro_batch_size": 4}, checkpoint={"every": 5})
    told = ranks.run(3, diverged, config, 1)
    assert len(set(told)) == 1
    assert told[0].startswith(
        "replicas differ after step 5: ranks 1 have different values of backbone.conv1.weight"
    )
    assert not (tmp_path / "checkpoints/latest").exists()
    two = msgspec.structs.replace(config, output=str(tmp_path / "two"))
    assert "the ranks have different values" in ranks.run(2, diverged, two, 1)[0]


def compared(flipped: int) -> str | None:
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    state = {
        "half": torch.arange(7.0, dtype=torch.float16),
        "double": torch.arange(1 << 20, dtype=torch.float64).view(1024, 1024).T,
        "large": torch.zeros((1 << 20) + 5),
        "count": torch.tensor(3),
        "none": torch.zeros(0),
    }
    if dist_ctx.rank == 0:
        state["large"][flipped] = 1.0
    try:
        check_replicas(state, 1, dist_ctx)
    except DivergenceError as error:
        return str(error)
    return None


@pytest.mark.parametrize("flipped", [0, 1 << 19, 1 << 20, (1 << 20) + 4])
def test_a_digest_covers_every_element(ranks, flipped):
    assert ranks.run(1, compared, flipped) == [None]
    assert all("large" in told for told in ranks.run(2, compared, flipped))
