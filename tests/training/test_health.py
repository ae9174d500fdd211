"""A run whose loss is lost ends, says since when, and saves nothing of it."""

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers.runs import config_of, no_pictures

from partialfc.config import Config
from partialfc.runtime import comm
from partialfc.training import loop
from partialfc.training.backbone_optimizer import BackboneOptimizer
from partialfc.training.health import DivergenceError, TrainingHealth

FIRST_BAD = 12


def ended(config: Config, spoil: str | None = None) -> str:
    """Why a rank's run ended. spoil: what is not finite from step FIRST_BAD on."""
    step, calls = BackboneOptimizer.step, 0

    def spoilt(self, lr, loss):
        nonlocal calls
        calls += 1
        if spoil == "gradients" and calls >= FIRST_BAD:
            self.gradients._buckets[0].fill_(torch.inf)
        return step(self, lr, loss)

    with mock.patch.object(BackboneOptimizer, "step", spoilt), no_pictures():
        try:
            loop.train(config, comm.create_dist_context(torch.device("cpu")))
        except DivergenceError as problem:
            return str(problem)
    return "finished"


def saved(folder: Path) -> set[int]:
    return {int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*")}


def test_steps_that_are_skipped_in_a_row_end_the_run_and_are_not_saved(ranks, pack, tmp_path):
    sections = {"checkpoint": {"every": 4, "keep": 9}, "train": {"length": 60, "max_skipped_steps": 7}}
    told = ranks.run(2, ended, config_of(pack, tmp_path, **sections), "gradients")
    assert len(set(told)) == 1 and told[0].startswith("diverged: non-finite gradients in ")
    assert saved(tmp_path) == {4, 8}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert FIRST_BAD + 7 <= max(line["step"] for line in lines) <= FIRST_BAD + 7 + 3


def test_a_rate_that_is_far_too_large_is_no_success(ranks, pack, tmp_path):
    sections = {"optim": {"lr": 1e30}, "checkpoint": {"every": 2, "keep": 9}, "schedule": {"warmup": 0}}
    (told,) = ranks.run(1, ended, config_of(pack, tmp_path, **sections))
    assert told.startswith("diverged: ") and not saved(tmp_path)


def test_a_skipped_step_puts_off_the_checkpoint(ranks, pack, tmp_path):
    """As fp16 skips some while its loss scale is found."""
    ranks.run(1, skipping, config_of(pack, tmp_path, checkpoint={"every": 4, "keep": 9}), {8, 9})
    assert saved(tmp_path) == {4, 10, 12, 16, 20, 24, 28, 30}


def test_a_run_whose_steps_are_taken_again_goes_on(ranks, pack, tmp_path):
    """So many are skipped that the first rank gives notice; before it is heard, a step is taken."""
    sections = {"train": {"length": 30, "max_skipped_steps": 3}, "checkpoint": {"every": 0}}
    ranks.run(2, skipping, config_of(pack, tmp_path, **sections), {8, 9, 10})
    assert saved(tmp_path) == {30}
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 30


def skipping(config: Config, skipped: set[int]) -> None:
    """A run that takes these steps for skipped ones."""
    counted = TrainingHealth.update

    def update(self, step, finite, loss):
        counted(self, step, finite & torch.tensor(step not in skipped), loss)

    with mock.patch.object(TrainingHealth, "update", update):
        ended(config)


@pytest.mark.parametrize("max_skipped", [1, 3])
def test_health_counts_skips_in_a_row(max_skipped):
    health = TrainingHealth(torch.device("cpu"))
    good, bad, loss = torch.tensor(True), torch.tensor(False), torch.tensor(1.0)
    for step, finite in enumerate([good, bad, good, bad, bad], 1):
        health.update(step, finite, loss)
    assert health.num_skipped == 2 and (health.find_problem(5, max_skipped) is None) == (max_skipped == 3)
    health.update(6, bad, torch.tensor(torch.nan))
    health.update(7, good, loss)
    assert health.find_problem(7, 100) == "diverged: non-finite loss at step 6"
