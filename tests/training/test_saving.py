"""When checkpoints are made: by steps, by the first rank's clock, and where an evaluation was the best so far."""

import json
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from runs import assert_refused, config_of, no_pictures, verification_of

from partialfc.config import Config
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import read_manifest
from partialfc.training import loop
from partialfc.training.schedule import in_seconds


def saved_at(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*"))


def slowly(config: Config) -> None:
    """The first rank's steps take a tenth of a second and more, the second's clock stands still."""
    ranks, train_step, now = comm.ranks_of(torch.device("cpu")), loop.train_step, time.monotonic()

    def slow(*arguments):
        time.sleep(0.1)
        return train_step(*arguments)

    clock = time.monotonic if ranks.first else lambda: now
    with (
        mock.patch.object(loop, "train_step", slow),
        mock.patch("partialfc.training.saving.time.monotonic", clock),
        no_pictures(),
    ):
        loop.train(config, ranks)


def test_the_first_ranks_clock_says_when(ranks, pack, tmp_path):
    sections = {"checkpoint": {"every": "0.8 seconds", "keep": 99}, "train": {"length": 40}}
    ranks.run(2, slowly, config_of(pack, tmp_path, **sections))
    steps = saved_at(tmp_path)
    gaps = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    assert steps[-1] == 40 and 2 <= len(steps) <= 5 and max(gaps) <= 8 + 3, steps


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [("15 minutes", 900), ("1 hour", 3600), ("0.5 seconds", 0.5), ("2 epochs", None), (7, None)],
)
def test_intervals(interval, seconds):
    assert in_seconds(interval) == seconds


def trained(config: Config) -> None:
    with no_pictures():
        loop.train(config, comm.ranks_of(torch.device("cpu")))


def test_the_best_evaluation_is_kept(ranks, pack, tmp_path):
    checkpoint = {"every": 0, "keep": 1, "keep_best": "unseen/auc"}
    sections = {"evaluation": {"every": 6}, "optim": {"lr": 1e-3}, "train": {"length": 30}}
    ranks.run(2, trained, config_of(pack, tmp_path, checkpoint=checkpoint, **sections))
    scores = {step: verification_of(tmp_path, step)["unseen"]["auc"] for step in range(6, 31, 6)}
    best = max(scores, key=lambda step: (scores[step], -step))  # the first of equals
    manifest = read_manifest(tmp_path / "checkpoints/best")
    assert (manifest.step, manifest.score) == (best, scores[best])
    assert saved_at(tmp_path) == sorted({best, 30})


@pytest.mark.parametrize("name", ["seen/auc", "unseen/accurracy"])
def test_a_score_that_is_not_there_is_named(ranks, pack, tmp_path, name):
    config = config_of(
        pack, tmp_path, checkpoint={"keep_best": name}, evaluation={"every": 2}, train={"length": 4}
    )
    assert_refused(
        ranks, 2, config, f"checkpoint.keep_best: {name}, wanted one of unseen/accuracy, unseen/acc"
    )


def test_what_a_save_took_stands_in_the_metrics(ranks, pack, tmp_path):
    ranks.run(1, trained, config_of(pack, tmp_path, checkpoint={"every": 10}, train={"length": 20}))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    saves = {line["step"]: line for line in lines if "saved_in" in line}
    assert saves.keys() == {10, 20} and all(line["stalled"] > 0 for line in saves.values())
