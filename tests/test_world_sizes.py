"""The same run at any world size: one recipe, one seed, one loss curve, whatever the ranks and the restarts."""

from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from helpers.runs import assert_refused, assert_same_bits, config_of, curve, trained, whole

from partialfc.config import Config
from partialfc.runtime import comm

STEPS = 30
WORLD_SIZES = (1, 2, 3, 4)


def config(pack: Path, output: Path, **sections):
    """Everything random at once: sampling, ordered elastic margins, dropout, augmentation, and epochs of 3 steps.

    The rate is low: a network of PReLUs has kinks, and where rounding puts one activation of a million on the other
    side of its kink, the next losses differ by what that one contributes to a step.
    """
    settings = {
        "backbone": {"dropout": 0.4},
        "augment": {"crop": 0.2, "low_resolution": 0.2, "blur": 0.2, "photometric": 0.2, "gray": 0.1},
        "optim": {"lr": 0.0005},
        "train": {"global_batch_size": 48, "micro_batch_size": 4, "length": STEPS},
        "checkpoint": {"every": 5, "keep": 10},
    }
    return config_of(pack, output, **{**settings, **sections})


@pytest.fixture(scope="module")
def undisturbed(ranks, pack, tmp_path_factory):
    """At each world size: the loss curve and the final state of a run that was not stopped, and its folder."""
    runs = {}
    for world_size in WORLD_SIZES:
        output = tmp_path_factory.mktemp(f"world{world_size}")
        state = whole(ranks.run(world_size, trained, config(pack, output)))
        runs[world_size] = curve(output), state, output
    return runs


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_the_loss_curve_is_the_same_at_any_world_size(undisturbed, world_size):
    expected = undisturbed[1][0]
    assert len(expected) == STEPS and sum(expected[-5:]) < sum(expected[:5])
    assert undisturbed[world_size][0] == pytest.approx(expected, rel=1e-4)


def trained_without_collectives(config: Config) -> None:
    """Train; any collective on tensors but the loader's, which is on the host, raises."""

    def refuse(*arguments, **named):
        raise AssertionError("a collective of one rank")

    gather = comm._all_gather
    with (
        mock.patch.object(comm.dist, "all_reduce", refuse),
        mock.patch.object(comm, "_reduce_scatter", refuse),
        mock.patch.object(
            comm,
            "_all_gather",
            lambda *given, group, **named: (
                gather(*given, group=group, **named) if group is not dist.group.WORLD else refuse()
            ),
        ),
    ):
        trained(config)


def test_a_single_rank_issues_no_collectives(ranks, pack, tmp_path):
    run = config(
        pack,
        tmp_path,
        train={"global_batch_size": 48, "micro_batch_size": 12, "length": 2},
        log={"histograms_every": 1},
    )
    ranks.run(1, trained_without_collectives, run)
    assert len(curve(tmp_path)) == 2


LANES = {"order": "blocks", "lanes": 12}


@pytest.fixture(scope="module")
def in_lanes(ranks, pack, tmp_path_factory):
    """The loss curve and the final state of a run of 2 ranks that was not stopped."""
    output = tmp_path_factory.mktemp("lanes")
    state = whole(ranks.run(2, trained, config(pack, output, data=LANES)))
    return curve(output), state


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_in_lanes_too_at_any_world_size_workers_and_after_any_stop(
    ranks, pack, tmp_path, in_lanes, world_size
):
    losses, expected = in_lanes
    assert ranks.run(2, trained, config(pack, tmp_path, data=LANES), 8) == [None] * 2
    data = {**LANES, "num_workers": min(2, 4 // world_size)}  # at most four of all ranks together
    found = whole(ranks.run(world_size, trained, config(pack, tmp_path, data=data)))
    assert curve(tmp_path) == pytest.approx(losses, rel=1e-4)
    if world_size == 2:
        assert_same_bits(found, expected)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(ranks, pack, tmp_path, undisturbed, workers):
    found = whole(ranks.run(1, trained, config(pack, tmp_path, data={"num_workers": workers})))
    assert_same_bits(found, undisturbed[1][1])
    assert curve(tmp_path) == undisturbed[1][0]


@pytest.mark.parametrize("stop", [15, 20], ids=["at an epoch's end", "inside an epoch"])
def test_resumed_at_the_same_world_size_is_the_same_bit_for_bit(ranks, pack, tmp_path, undisturbed, stop):
    assert ranks.run(3, trained, config(pack, tmp_path), stop + 1) == [None] * 3
    assert_same_bits(whole(ranks.run(3, trained, config(pack, tmp_path))), undisturbed[3][1])
    assert curve(tmp_path) == undisturbed[3][0]


@pytest.mark.parametrize("optim", [{"name": "sgd"}, {"name": "adamw"}], ids=str)
def test_rows_that_missed_steps_go_on_at_another_world_size(ranks, pack, tmp_path, optim):
    """Each row's steps, and what it has to catch up on, move with it."""
    sections = {
        "optim": {**optim, "lr": 0.0005},
        "head": {"sample_rate": 0.1, "unsampled": "decay" if optim["name"] == "sgd" else "hold"},
    }
    expected = whole(ranks.run(1, trained, config(pack, tmp_path / "one", **sections)))
    assert ranks.run(3, trained, config(pack, tmp_path / "two", **sections), 12) == [None] * 3
    found = whole(ranks.run(2, trained, config(pack, tmp_path / "two", **sections)))
    steps = "last_step" if optim["name"] == "sgd" else "counts"
    assert torch.equal(found[steps], expected[steps]) and len(expected[steps].unique()) > 1
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-4)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_resumed_at_another_world_size_has_the_same_curve(ranks, pack, tmp_path, undisturbed, world_size):
    ranks.run(3, trained, config(pack, tmp_path), 15)
    ranks.run(world_size, trained, config(pack, tmp_path))
    assert curve(tmp_path) == pytest.approx(undisturbed[1][0], rel=1e-4)


def test_a_chain_of_world_sizes_has_the_same_curve(ranks, pack, tmp_path, undisturbed):
    for world_size, stop in ((2, 5), (1, 10), (3, 20), (4, 25), (2, None)):
        ranks.run(world_size, trained, config(pack, tmp_path), stop)
    assert curve(tmp_path) == pytest.approx(undisturbed[1][0], rel=1e-4)


def test_a_world_size_that_does_not_fit_is_refused_with_those_that_do(ranks, pack, tmp_path):
    other = config(pack, tmp_path, train={"global_batch_size": 48, "micro_batch_size": 16, "length": 3})
    assert_refused(
        ranks, 2, other, "48 in micro-batches of 16 cannot be split over 2 ranks; expected one of 1, 3$"
    )


def test_another_micro_batch_is_another_run(ranks, pack, undisturbed):
    other = config(
        pack, undisturbed[2][2], train={"global_batch_size": 48, "micro_batch_size": 8, "length": STEPS}
    )
    assert_refused(ranks, 2, other, "written with a different config: train.micro_batch_size 4 -> 8; restore")
