"""The duration that `partialfc plan --measure` predicts."""

import json
import re
from pathlib import Path
from unittest import mock

import msgspec
import pytest
import torch
from helpers.calling import called
from helpers.faces import write_pack, write_pairs
from helpers.runs import config_of

from partialfc.config import Config
from partialfc.doctor import duration
from partialfc.doctor.result import CheckResult
from partialfc.runtime import comm


@pytest.fixture
def config(tmp_path) -> Config:
    write_pack(tmp_path / "pack", 10, 6)
    return config_of(tmp_path / "pack", tmp_path / "run")


def predicted(config: Config) -> CheckResult:
    """Return the prediction for steps of 0.2 s and evaluations of 3 s."""
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    with (
        mock.patch.object(duration, "run_trial_steps", return_value=(5, 1.0)),
        mock.patch.object(duration, "_time_evaluation", return_value=3.0),
    ):
        return duration.predict_duration(config, dist_ctx)


@pytest.mark.parametrize(
    ("length", "every", "evaluations"), [(1000, 0, 2), (1000, 100, 11), (1000, 300, 5), (1000, 2000, 2)]
)
def test_steps_and_evaluations_are_counted(ranks, config, length, every, evaluations):
    write_pairs(Path(config.data.path, "some.bin"))
    tree = msgspec.to_builtins(config) | {"evaluation": {"every": every}}
    tree["train"]["length"] = length
    (found, _) = ranks.run(2, predicted, msgspec.convert(tree, Config))
    assert found.values["seconds"] == pytest.approx(200 + 3 * evaluations)
    assert f"an evaluation: 3.0 s; {evaluations} of them" in found.lines[1]


def test_without_sets_there_are_only_steps(ranks, config):
    (found,) = ranks.run(1, predicted, config)
    assert found.values["seconds"] == pytest.approx(0.2 * config.train.length) and len(found.lines) == 2


def test_a_plan_that_measures(config, tmp_path):
    write_pairs(Path(config.data.path, "some.bin"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(msgspec.to_builtins(config)))
    done = called("plan", recipe, "--gpus", "2", "--measure")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "identities on 2 ranks" in done.stdout
    assert re.search(r"duration +\d+ steps: .* ms each, \d+ images/s; 30 steps take 0:00:", done.stdout)
    assert re.search(r"the run takes about 0:\d\d:\d\d on 2 rank\(s\)", done.stdout)
    assert not Path(config.output, ".doctor").exists()
