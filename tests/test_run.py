"""A run equals a run: stopped and resumed, at another world size, with other workers."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from faces import write_pack, write_pairs

from partialfc import train
from partialfc.config import Config
from partialfc.runtime import comm

CLASSES, IMAGES, SIZE = 23, 5, 32  # 115 images: the last batch of an epoch is filled up


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    write_pack(folder, CLASSES, IMAGES, SIZE)
    write_pairs(folder / "unseen.bin", 20, SIZE)
    return folder


def config_of(pack: Path, output: Path, **sections: dict[str, Any]) -> Config:
    tree: dict[str, dict[str, Any]] = {
        "data": {"path": str(pack), "workers": 0},
        "backbone": {
            "name": "iresnet_tiny", "width": 4, "depths": [1, 1], "input_size": SIZE, "embedding": 16,
            "dropout": 0.2,
        },
        "margin": {"name": "elastic_arcface", "margin": 0.3, "scale": 16.0, "order": "paper"},
        "head": {"sample_rate": 0.3},
        "optim": {"lr": 0.02},
        "schedule": {"name": "polynomial", "warmup": "1 epochs"},
        "train": {"batch": 24, "length": 30},
        "report": {"every": 1},
    }  # fmt: skip
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return msgspec.convert({**tree, "output": str(output), "seed": 3, "device": "cpu"}, Config)


class StoppedHere(Exception):
    pass


def trained(config: Config, stop: int | None = None) -> dict[str, torch.Tensor] | None:
    """What a rank ends with: backbone and centres. With `stop`: nothing, the run dies before that step."""

    def step_or_die(run, batch, step=train.train_step):
        if run.step == stop:
            raise StoppedHere
        return step(run, batch)

    original, train.train_step = train.train_step, step_or_die
    try:
        run = train.train(config, comm.ranks_of(torch.device(config.device)))
    except StoppedHere:
        return None
    finally:
        train.train_step = original
    state = {name: value.clone() for name, value in run.backbone.state_dict().items()}
    return state | {"centers": run.head.centers.weight, "momentum": run.head.centers.momentum}


def curve(config: Config) -> list[float]:
    """The loss of every step; a step that was done twice counts as it was last."""
    lines = [json.loads(line) for line in Path(config.output, "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    return [losses[step] for step in sorted(losses)]


def whole(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The state of all ranks together; asserts that their replicas agree."""
    for state in states:
        for name, value in state.items():
            assert name in ("centers", "momentum") or torch.equal(value, states[0][name]), name
    shards = {name: torch.cat([state[name] for state in states]) for name in ("centers", "momentum")}
    return {**states[0], **shards}


@pytest.fixture(scope="session")
def undisturbed(ranks, pack, tmp_path_factory):
    """A run of 30 steps at each world size: its loss curve, its final state, its folder."""
    runs = {}
    for world_size in (1, 2, 3):
        config = config_of(pack, tmp_path_factory.mktemp("undisturbed"))
        state = whole(ranks.run(world_size, trained, config))
        runs[world_size] = curve(config), state, Path(config.output)
    return runs


def test_the_loss_curve_is_the_same_at_any_world_size(undisturbed):
    expected, _, _ = undisturbed[1]
    assert len(expected) == 30 and expected[-1] < expected[0]
    for world_size in (2, 3):
        assert undisturbed[world_size][0] == pytest.approx(expected, rel=1e-4)


def test_stopped_and_resumed_is_the_same_bit_for_bit(ranks, pack, tmp_path, undisturbed):
    config = config_of(pack, tmp_path, checkpoint={"every": 15})
    assert ranks.run(3, trained, config, 17) == [None] * 3
    assert (tmp_path / "checkpoints/latest").resolve().name == "step_00000015"
    state = whole(ranks.run(3, trained, config))
    losses, expected, _ = undisturbed[3]
    assert curve(config) == losses
    for name, value in expected.items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(("first", "then"), [(3, 1), (1, 2), (2, 3)])
def test_resumed_at_another_world_size_has_the_same_curve(ranks, pack, tmp_path, undisturbed, first, then):
    config = config_of(pack, tmp_path, checkpoint={"every": 15})
    ranks.run(first, trained, config, 15 + 1)
    ranks.run(then, trained, config)
    assert curve(config) == pytest.approx(undisturbed[1][0], rel=1e-4)


def test_the_number_of_workers_changes_nothing(ranks, pack, tmp_path, undisturbed):
    config = config_of(pack, tmp_path, data={"workers": 2})
    state = whole(ranks.run(1, trained, config))
    for name, value in undisturbed[1][1].items():
        assert torch.equal(value, state[name]), name


def test_what_a_run_leaves(undisturbed):
    _, _, output = undisturbed[2]
    names = {path.name for path in output.iterdir()}
    assert names == {"recipe.yaml", "log.txt", "metrics.jsonl", "summary.json", "tensorboard", "checkpoints"}
    summary = json.loads((output / "summary.json").read_text())
    assert summary["steps"] == 30 and summary["seconds"] > 0 and summary["images_per_second"] > 0
    assert set(summary["verification"]["unseen"]) == {
        "accuracy",
        "accuracy_std",
        "auc",
        "tar@far=1e-3",
        "tar@far=1e-4",
    }
    assert 0 <= summary["verification_before"]["unseen"]["accuracy"] <= 1
    assert [path.name for path in output.glob("checkpoints/*")] != []
    assert list((output / "tensorboard").iterdir())
    log = (output / "log.txt").read_text()
    assert "115 images of 23 identities" in log and "step 30/30" in log and "unseen: accuracy" in log


def test_verification_does_not_depend_on_the_world_size(ranks, undisturbed, pack, tmp_path):
    """The same weights, evaluated on 1 and 3 ranks by resuming a finished run."""
    scores = []
    for world_size in (1, 3):
        config = config_of(pack, undisturbed[2][2])
        ranks.run(world_size, trained, config)
        scores.append(json.loads((undisturbed[2][2] / "summary.json").read_text())["verification"])
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"batch": 48}}, "made with batch 24, the recipe says 48"),
        ({"backbone": {"width": 8}}, "made with backbone .*'width': 4.* the recipe says .*'width': 8"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(ranks, pack, undisturbed, change, message):
    with pytest.raises(AssertionError, match=message):
        ranks.run(2, trained, config_of(pack, undisturbed[2][2], **change))


def test_a_world_size_that_does_not_divide_the_batch_is_refused(ranks, pack, tmp_path):
    with pytest.raises(AssertionError, match="does not suit 4 ranks; world sizes that work: 1, 2, 3, 6"):
        ranks.run(4, trained, config_of(pack, tmp_path))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains(ranks, pack, tmp_path, precision):
    config = config_of(pack, tmp_path, train={"precision": precision}, optim={"lr": 0.05})
    state = whole(ranks.run(2, trained, config))
    assert all(value.isfinite().all() for value in state.values())
    losses = curve(config)
    assert sum(losses[-5:]) < sum(losses[:5])
