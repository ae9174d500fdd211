"""Whole runs on small packs: what the tests of runs share."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import torch
from torch.distributed.tensor import DTensor

from partialfc.config import Config
from partialfc.evaluation import plots as of_pairs
from partialfc.monitoring import plots
from partialfc.runtime import comm
from partialfc.training import loop

CLASSES, IMAGES, SIZE = 23, 5, 32  # 115 images: the last batch of an epoch is filled up


def config_of(pack: Path, output: Path, **sections: dict[str, Any]) -> Config:
    tree: dict[str, dict[str, Any]] = {
        "data": {"path": str(pack), "num_workers": 0},
        "backbone": {
            "name": "iresnet_tiny", "width": 4, "depths": [1, 1], "input_size": SIZE, "embedding_size": 16,
            "dropout": 0.2,
        },
        "loss": {"name": "elastic_arcface", "margin": 0.3, "scale": 16.0, "order": "paper"},
        "head": {"sample_rate": 0.3},
        "optim": {"name": "sgd", "lr": 0.02},
        "schedule": {"name": "polynomial", "warmup": "1 epochs"},
        "train": {"global_batch_size": 24, "length": 30},
        "log": {"every": 1},
        "evaluation": {"batch_size": 16},  # the last one is filled up
    }  # fmt: skip
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return msgspec.convert({**tree, "output": str(output), "seed": 3, "device": "cpu"}, Config)


@contextmanager
def no_pictures() -> Iterator[None]:
    dot = np.zeros((1, 1, 3), np.uint8)
    with (
        mock.patch.object(of_pairs, "plot_roc", return_value=dot),
        mock.patch.object(of_pairs, "plot_hardest_pairs", return_value=dot),
        mock.patch.object(plots, "plot_runs"),
    ):
        yield


class SimulatedCrashError(Exception):
    pass


def trained(
    config: Config, stop: int | None = None, pictures: bool = False
) -> dict[str, torch.Tensor] | None:
    """What a rank ends with: backbone and centers. With `stop`: nothing, the run dies before that step.

    pictures: whether the run draws any, which takes half of the time of runs so small.
    """

    def step_or_die(run, batch, step, train_step=loop.train_step):
        if run.step == stop:
            for thread in threading.enumerate():
                if thread.name == "checkpoint":  # what it writes does not die with this exception
                    thread.join()
            raise SimulatedCrashError
        return train_step(run, batch, step)

    with mock.patch.object(loop, "train_step", step_or_die), nullcontext() if pictures else no_pictures():
        try:
            run = loop.train(config, comm.create_dist_context(torch.device(config.device)))
        except SimulatedCrashError:
            return None
    state = {name: value.clone() for name, value in run.backbone.state_dict().items()}
    if run.ema:
        state |= {f"average {name}": it.clone() for name, it in run.ema.network.state_dict().items()}
    return state | {name: local_rows(value) for name, value in run.head.state_dict().items()}


def local_rows(value: torch.Tensor) -> torch.Tensor:
    """This rank's part of what a head saves."""
    return value.to_local() if isinstance(value, DTensor) else value


def refusal(config: Config) -> str:
    """What a rank is told where the run is refused."""
    try:
        trained(config)
    except comm.CollectiveInputError as error:
        return str(error)
    return "not refused"


def assert_refused(ranks, world_size: int, config: Config, message: str) -> None:
    told = ranks.run(world_size, refusal, config)
    assert len(set(told)) == 1 and re.search(message, told[0]) and "\n" not in told[0], told


def curve(output: Path) -> list[float]:
    """The loss of every step, each there once."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps, losses = zip(*((line["step"], line["loss"]) for line in lines if "loss" in line), strict=True)
    assert steps == tuple(range(1, len(steps) + 1))
    return list(losses)


def whole(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The state of all ranks together; asserts that their replicas agree."""
    rows = (
        "class_ids",
        "centers",
        "momentum",
        "first_moment",
        "second_moment",
        "counts",
        "last_step",
        "seen_classes",
    )
    shards = [name for name in rows if name in states[0]]
    for state in states:
        for name, value in state.items():
            assert name in shards or torch.equal(value, states[0][name]), name
    return {**states[0], **{name: torch.cat([state[name] for state in states]) for name in shards}}


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def verification_of(output: Path, step: int) -> dict[str, dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return next(line["verification"] for line in lines if line["step"] == step and "verification" in line)
