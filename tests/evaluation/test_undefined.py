"""Runs and commands where scores are undefined, or embeddings unusable: said in one line, null in JSON, never 0 or 100 %."""

import json

import numpy as np
import pytest
import torch
from helpers.calling import called
from helpers.faces import write_pairs
from helpers.runs import config_of, trained

from partialfc.data.packs.pairs import write_pairs as write_set
from partialfc.evaluation.pairs import load_pairs
from partialfc.inference.stored_scores import load_scores
from partialfc.inference.weights import read_weights


@pytest.fixture(scope="module")
def one_kind(tmp_path_factory):
    """A verification set without a pair of one person."""
    folder = tmp_path_factory.mktemp("sets")
    write_pairs(folder / "both.bin", 20)
    pairs = load_pairs(folder / "both.bin")
    write_set(folder / "one_kind.bin", [bytes(it) for it in pairs.images], [False] * 20)
    return folder


def test_a_run_on_a_set_of_one_kind_says_so_and_goes_on(ranks, pack, one_kind, tmp_path):
    evaluation = {
        "sets": [str(one_kind / "one_kind.bin"), str(one_kind / "both.bin")],
        "every": 2,
        "batch_size": 16,
    }
    sections = {
        "evaluation": evaluation,
        "checkpoint": {"every": 2, "keep_best": "one_kind/accuracy"},
        "train": {"length": 4},
    }
    config = config_of(pack, tmp_path, **sections)
    ranks.run(2, trained, config, 3)
    ranks.run(2, trained, config)
    log = (tmp_path / "log.txt").read_text()
    assert "warning: one_kind: scores are undefined: all 20 pairs show different people" in log
    assert "one_kind: accuracy -, AUC -" in log and "nan" not in log
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verification"]["one_kind"]["accuracy"] is None
    assert summary["verification"]["both"]["accuracy"] > 0
    assert "one_kind" not in summary["verification_best"] and not (tmp_path / "checkpoints/best").exists()
    assert np.isnan(load_scores(tmp_path)["one_kind"]["accuracy"])
    for command in (
        ["report", tmp_path, "--out", tmp_path / "page.html"],
        ["plot", tmp_path, "--out", tmp_path / "a.png"],
    ):
        done = called(*command)
        assert done.returncode == 0, done.stderr
    evaluated = called("evaluate", tmp_path, one_kind / "one_kind.bin", "--json", tmp_path / "scores.json")
    assert evaluated.returncode == 0 and " - " in evaluated.stdout and "100" not in evaluated.stdout
    assert evaluated.stderr.startswith("warning: one_kind: scores are undefined")
    scores = json.loads((tmp_path / "scores.json").read_text())["sets"]["one_kind"]["scores"]
    assert set(scores.values()) == {None}


def spoilt_at_first(config) -> None:
    """A run whose network gives NaN before the first step alone, as in 16 bits a fresh one may."""
    from unittest import mock

    from partialfc.training.run import Run

    embed = Run.embed_sets

    def spoilt(run, *arguments):
        found = embed(run, *arguments)
        return {name: it * torch.nan if run.step == 0 else it for name, it in found.items()}

    with mock.patch.object(Run, "embed_sets", spoilt):
        trained(config)


def test_a_run_goes_on_after_an_evaluation_that_could_not_be_scored(ranks, pack, tmp_path):
    ranks.run(2, spoilt_at_first, config_of(pack, tmp_path, train={"length": 2}))
    log = (tmp_path / "log.txt").read_text()
    assert "warning: step 0  unseen: expected finite embeddings, got 40 of 40 that are not; not scored" in log
    assert json.loads((tmp_path / "summary.json").read_text())["verification"]["unseen"]["accuracy"] > 0


def test_a_network_with_statistics_that_are_not_finite_is_an_error(ranks, pack, tmp_path):
    ranks.run(1, trained, config_of(pack, tmp_path / "run", train={"length": 2}))
    weights = read_weights(tmp_path / "run")
    weights["bn1.running_var"][:] = torch.nan
    import safetensors.torch

    settings = json.dumps(
        {"name": "iresnet_tiny", "width": 4, "depths": [1, 1], "input_size": 32, "embedding_size": 16}
    )
    path = tmp_path / "spoilt.safetensors"
    safetensors.torch.save_file(weights, path, {"backbone": settings})
    (tmp_path / "faces").mkdir()
    for number, image in enumerate(load_pairs(pack / "unseen.bin").images[:3]):
        (tmp_path / f"faces/{number}.jpg").write_bytes(bytes(image))
    for arguments in (
        ("evaluate", path, pack / "unseen.bin"),
        ("embed", path, tmp_path / "faces", tmp_path / "out.npz"),
        ("embed", path, pack, tmp_path / "out"),
        ("compare", path, tmp_path / "faces/0.jpg", tmp_path / "faces/1.jpg"),
    ):
        done = called(*arguments)
        assert done.returncode == 2 and "finite" in done.stderr and done.stderr.count("\n") == 1, done
    assert not (tmp_path / "out.npz").exists()
