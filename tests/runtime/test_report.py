"""What a run says, and what of it survives a resume."""

import json
from pathlib import Path

import torch

from partialfc.runtime.report import Length, Metrics, Report


def metrics(loss: float, finite: bool = True) -> Metrics:
    return Metrics(
        torch.tensor(loss), torch.tensor(1.0), torch.tensor(finite), rate=0.1, waited=0.5, replaced=0
    )


def report(folder: Path, start: int = 0, every: int = 2, enabled: bool = True) -> Report:
    return Report(folder, Length(start, 6, 3, 8, seconds=100.0 * (start > 0)), every=every, enabled=enabled)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scores(accuracy: float) -> dict[str, dict[str, float]]:
    names = ("accuracy_std", "auc", "tar@far=1e-3", "tar@far=1e-4")
    return {"lfw": {"accuracy": accuracy, **dict.fromkeys(names, 0.5)}}


def run(folder: Path, start: int, stop: int) -> None:
    with report(folder, start) as written:
        if start == 0:
            written.scores(0, scores(0.5))
        for step in range(start + 1, stop + 1):
            written.step(step, metrics(float(step), finite=step != 3))
        written.scores(stop, scores(0.5 + stop / 100))
        written.summary(stop)


def test_lines_hold_means_and_skips_and_the_last_step_always_has_one(tmp_path):
    run(tmp_path, 0, 6)
    found = lines(tmp_path)
    assert [line["step"] for line in found if "epoch_steps" not in line] == [0, 2, 4, 6, 6]
    assert [line["loss"] for line in found if "loss" in line] == [1.5, 3.5, 5.5]
    assert [line["skipped"] for line in found if "loss" in line] == [0, 1, 0]
    assert [line["epoch"] for line in found if "loss" in line] == [2 / 3, 4 / 3, 2.0]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["loss"] == 5.5 and summary["steps"] == 6
    assert summary["verification_before"]["lfw"]["accuracy"] == 0.5
    assert summary["verification"]["lfw"]["accuracy"] == 0.56
    assert "1 steps skipped" in (tmp_path / "log.txt").read_text()


def test_the_wait_for_data_is_told_of_steps_and_summed_over_epochs(tmp_path):
    run(tmp_path, 0, 6)
    run(tmp_path, 5, 6)
    found = [line for line in lines(tmp_path) if "epoch_steps" in line]
    assert [(line["step"], line["epoch_steps"], line["epoch_data_wait"]) for line in found] == [
        (3, 3, 1.5),
        (6, 1, 0.5),  # of an epoch that was begun by another run
    ]
    assert {line["longest_data_wait"] for line in lines(tmp_path) if "loss" in line} == {0.5}
    assert "epoch 1: waited 1.5 s for data" in (tmp_path / "log.txt").read_text()


def test_a_resumed_run_keeps_what_was_before_its_step_and_drops_the_rest(tmp_path):
    run(tmp_path, 0, 5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "los')  # a process killed while it wrote
    run(tmp_path, 2, 6)
    assert [line["step"] for line in lines(tmp_path) if "epoch_steps" not in line] == [0, 2, 4, 6, 6]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verification_before"]["lfw"]["accuracy"] == 0.5 and summary["seconds"] > 100


def test_a_run_from_the_start_keeps_nothing(tmp_path):
    run(tmp_path, 0, 4)
    with report(tmp_path):
        assert lines(tmp_path) == []


def test_other_ranks_write_nothing(tmp_path):
    with report(tmp_path / "none", enabled=False) as silent:
        silent.say("x")
        silent.scores(0, scores(0.5))
        silent.step(2, metrics(1.0))
        silent.summary(2)
    assert not (tmp_path / "none").exists()
