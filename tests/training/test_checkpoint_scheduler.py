"""When checkpoints are made: by steps, by the first rank's clock, and where an evaluation was the best so far."""

import itertools
import json
import signal
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers.runs import assert_refused, config_of, no_pictures, verification_of

from partialfc.config import Config
from partialfc.config.durations import to_seconds
from partialfc.runtime import comm
from partialfc.runtime.checkpoint import read_manifest
from partialfc.runtime.process.signals import StopRequest
from partialfc.training import loop
from partialfc.training.run import Run


def saved_at(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*"))


def slowly(config: Config) -> None:
    """Steps take a tenth of a second and more; the second rank's clock is far ahead, a day a look."""
    dist_ctx, train_step, days = (
        comm.create_dist_context(torch.device("cpu")),
        loop.train_step,
        itertools.count(),
    )

    def slow(*arguments):
        time.sleep(0.1)
        return train_step(*arguments)

    clock = time.monotonic if dist_ctx.is_main else lambda: 86400.0 * next(days)
    with (
        mock.patch.object(loop, "train_step", slow),
        mock.patch("partialfc.training.checkpoint_scheduler.time.monotonic", clock),
        no_pictures(),
    ):
        loop.train(config, dist_ctx)


def test_the_first_ranks_clock_says_when(ranks, pack, tmp_path):
    sections = {"checkpoint": {"every": "0.8 seconds", "keep": 99}, "train": {"length": 40}}
    ranks.run(2, slowly, config_of(pack, tmp_path, **sections))
    steps = saved_at(tmp_path)
    gaps = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    assert steps[-1] == 40 and 2 <= len(steps) <= 7 and max(gaps) <= 8 + 3, steps


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [("15 minutes", 900), ("1 hour", 3600), ("0.5 seconds", 0.5), ("2 epochs", None), (7, None)],
)
def test_intervals(interval, seconds):
    assert to_seconds(interval) == seconds


def trained(config: Config) -> None:
    with no_pictures():
        loop.train(config, comm.create_dist_context(torch.device("cpu")))


def test_the_best_evaluation_is_kept(ranks, pack, tmp_path):
    checkpoint = {"every": 0, "keep": 1, "keep_best": "unseen/auc"}
    sections = {"evaluation": {"every": 6}, "optim": {"lr": 1e-3}, "train": {"length": 30}}
    ranks.run(2, trained, config_of(pack, tmp_path, checkpoint=checkpoint, **sections))
    scores = {step: verification_of(tmp_path, step)["unseen"]["auc"] for step in range(6, 31, 6)}
    best = max(scores, key=lambda step: (scores[step], -step))  # the first of equals
    manifest = read_manifest(tmp_path / "checkpoints/best")
    assert (manifest.step, manifest.score) == (best, scores[best])
    assert saved_at(tmp_path) == sorted({best, 30})


@pytest.mark.parametrize("name", ["seen/auc", "unseen/accurracy"])  # codespell:ignore accurracy
def test_a_score_that_is_not_there_is_named(ranks, pack, tmp_path, name):
    config = config_of(
        pack, tmp_path, checkpoint={"keep_best": name}, evaluation={"every": 2}, train={"length": 4}
    )
    assert_refused(
        ranks, 2, config, f"checkpoint.keep_best: {name}, expected one of unseen/accuracy, unseen/acc"
    )


def test_what_a_save_took_stands_in_the_metrics(ranks, pack, tmp_path):
    ranks.run(1, trained, config_of(pack, tmp_path, checkpoint={"every": 10}, train={"length": 20}))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    saves = {line["step"]: line for line in lines if "checkpoint_write_seconds" in line}
    assert saves.keys() == {10, 20} and all(line["checkpoint_stall_seconds"] > 0 for line in saves.values())


def stopped_in_an_evaluation(config: Config, at: int, rank: int) -> tuple[int, int]:
    """A signal comes to one rank while the sets are embedded after step `at`: the step at which the run is stopped, and by
    what.
    """
    dist_ctx, stop, evaluate = comm.create_dist_context(torch.device("cpu")), StopRequest(), Run.embed_sets

    def asked(run, *given):
        if run.step == at and dist_ctx.rank == rank:
            stop.signal_number = signal.SIGTERM
        return evaluate(run, *given)

    with mock.patch.object(Run, "embed_sets", asked), no_pictures():
        run = loop.train(config, dist_ctx, stop)
    return run.step, run.stop_signal


@pytest.mark.parametrize("at", [6, 12])
def test_an_evaluation_is_given_up_and_taken_up_again(ranks, pack, tmp_path, at):
    """It may take longer than there is time after a signal; the last one, too."""
    sections = {"evaluation": {"every": 6}, "train": {"length": 12}}
    config, undisturbed = (config_of(pack, tmp_path / name, **sections) for name in ("run", "undisturbed"))
    stopped = ranks.run(2, stopped_in_an_evaluation, config, at, 1)
    assert stopped == [(at, signal.SIGTERM)] * 2 and saved_at(tmp_path / "run") == [at]
    assert not (tmp_path / "run/summary.json").exists()
    ranks.run(2, trained, config)
    ranks.run(2, trained, undisturbed)
    for step in (0, 6, 12):
        assert verification_of(tmp_path / "run", step) == verification_of(tmp_path / "undisturbed", step)
    assert (tmp_path / "run/summary.json").exists()
