"""Many runs of one recipe: which they are, that each is run once, what they come to."""

import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.calling import called
from helpers.runs import config_of
from scipy import stats

from partialfc import recipe
from partialfc.errors import InputError
from partialfc.sweep.grid import Grid, Point, parse_grid, parse_values
from partialfc.sweep.runner import TaskShard, parse_task
from partialfc.sweep.table import (
    _STUDENT_T_95,
    ResultRow,
    SweepResults,
    collect_results,
    format_mean_interval,
    table_cells,
    write_sweep_results,
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.5", ["0.5"]),
        ("0.45,0.5,0.55", ["0.45", "0.5", "0.55"]),
        ("0..3", ["0", "1", "2", "3"]),
        ("[1, 2],[3]", ["[1, 2]", "[3]"]),
        ("{flip: 0.5, crop: 0.2},{}", ["{flip: 0.5, crop: 0.2}", "{}"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("3 epochs,5 epochs", ["3 epochs", "5 epochs"]),
        ("", [""]),
    ],
)
def test_values_of_a_setting(text, values):
    assert parse_values(text) == values


@pytest.mark.parametrize("text", ["1,,2", "1,", "3..1"])
def test_values_that_are_none_are_told(text):
    with pytest.raises(InputError):
        parse_values(text)


def test_a_grid_is_every_combination():
    grid = parse_grid("faces_small", ["loss.margin=0.4,0.5", "train.length=5", "seed=0..2"])
    assert grid.fixed == ("train.length=5",) and len(grid.points) == 6
    assert grid.overrides(grid.points[1]) == ["train.length=5", "loss.margin=0.4", "seed=1"]
    assert grid.points[1].settings_without_seed() == (("loss.margin", "0.4"),)
    assert len({it.name for it in grid.points}) == 6
    assert parse_grid("faces_small", []).points == (Point(()),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss.margin"], "expected section.key=value, or section.key=one,other"),
        (["output=a,b"], "each run has its own folder; pass --out FOLDER"),
        (["seed=1", "seed=2,3"], "seed is given twice"),
        (["loss.scale=8,900"], "loss.scale"),
        (["margin.margn=0.4,0.5"], "margn"),
    ],
)
def test_a_grid_that_cannot_be_run_is_told_before_it_is(arguments, message):
    with pytest.raises(InputError, match=message):
        parse_grid("faces_small", arguments)


def test_a_folders_name_is_that_of_the_settings_and_safe():
    assert Point((("loss.margin", "0.4"), ("seed", "1"))).name == "loss.margin=0.4,seed=1"
    paths = [Point((("data.path", it),)).name for it in ("/a/b", "/a_b", "../a/b", "x" * 500)]
    assert len(set(paths)) == 4 and all("/" not in it and len(it) < 140 for it in paths)


def test_a_share_is_of_the_task_or_of_the_job_array(monkeypatch):
    assert parse_task(None) == TaskShard(0, 1) and parse_task("2/3") == TaskShard(2, 3)
    for wrong in ("3/3", "a/2", "1"):
        with pytest.raises(InputError, match=f"--shard {wrong}: expected I/N"):
            parse_task(wrong)
    for array, share in (((7, 5, 8, 1, 4), TaskShard(2, 4)), ((4, 0, 8, 2, 5), TaskShard(2, 5))):
        for name, value in zip(("ID", "MIN", "MAX", "STEP", "COUNT"), array, strict=True):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        assert parse_task(None) == share
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    with pytest.raises(InputError, match="a job array of 3 tasks from 0 to 8; expected --array=0-N"):
        parse_task(None)


def test_intervals_are_students():
    for degrees, quantile in enumerate(_STUDENT_T_95, 1):
        assert quantile == pytest.approx(stats.t.ppf(0.975, degrees), abs=6e-4)
    scores = [0.91, 0.92, 0.89, 0.932]
    half = stats.t.ppf(0.975, 3) * statistics.stdev(scores) / 2
    assert format_mean_interval(scores) == f"91.3% ± {100 * half:.1f}"
    assert format_mean_interval([0.5]) == "50.0%"


def finished(out: Path, point: Point, one: float, other: float) -> None:
    (out / point.name).mkdir(parents=True)
    scores = {"one": {"accuracy": one, "auc": 0.1}, "other": {"accuracy": other}}
    (out / point.name / "summary.json").write_text(json.dumps({"steps": 3, "verification": scores}))


def test_rows_are_means_over_seeds_and_the_best_by_rank_stands_first(tmp_path):
    grid = parse_grid("faces_small", ["loss.margin=0.4,0.5,0.6", "seed=0..1"])
    for point, one, other in zip(
        grid.points, (0.8, 0.9, 0.7, 0.8, 0.95), (0.6, 0.6, 0.9, 0.7, 0.6), strict=False
    ):
        finished(tmp_path, point, one, other)
    results = collect_results(grid, tmp_path)
    assert results.num_unfinished == 1 and len(results.runs) == 5 and results.sets == ["one", "other"]
    # means: 0.4 -> 85, 60; 0.5 -> 75, 80; 0.6 -> 95, 60
    header, *lines = table_cells(results)
    assert header == ["loss.margin", "runs", "one", "other", "rank sum"]
    assert [(it[0], it[1], it[-1]) for it in lines] == [
        ("0.6", "1", "3.5"),
        ("0.5", "2", "4"),
        ("0.4", "2", "4.5"),
    ]
    write_sweep_results(results, tmp_path)
    assert (tmp_path / "results.md").read_text().splitlines()[2].startswith("| 0.6 | 1 | 95.0% | 60.0% |")
    assert json.loads((tmp_path / "results.json").read_text())[0]["settings"] == {
        "loss.margin": "0.4",
        "seed": "0",
    }


def test_without_a_run_that_has_finished_there_is_no_table(tmp_path):
    assert table_cells(collect_results(Grid("faces_small", (), ()), tmp_path)) == [["runs", "rank sum"]]


@pytest.fixture
def swept(pack, tmp_path):
    """Calls `partialfc sweep` on a small recipe."""
    path = tmp_path / "recipe.yaml"
    config = config_of(pack, tmp_path / "unused", train={"length": 2}, evaluation={"every": 0})
    path.write_text(recipe.dump(config))
    return ["sweep", str(path), "--ranks=1", f"--out={tmp_path / 'out'}"]


def test_each_run_is_run_once_and_what_fails_does_not_keep_the_others(swept, tmp_path):
    first = called(*swept, "train.global_batch_size=23,24", "train.micro_batch_size=4")
    assert first.returncode == 2 and "train.global_batch_size=23: exit code 2, see" in first.stdout
    assert "23" in (tmp_path / "out/logs/train.global_batch_size=23.log").read_text()
    assert (tmp_path / "out/train.global_batch_size=24/summary.json").exists()
    assert (
        "1 of 2 runs unfinished" in first.stdout
        and "train.global_batch_size" in (tmp_path / "out/results.md").read_text()
    )
    again = called(*swept, "train.global_batch_size=24,12", "train.micro_batch_size=4", "--shard", "0/2")
    assert again.returncode == 0 and "1 of 2: train.global_batch_size=24: already finished" in again.stdout
    assert "train.global_batch_size=12" not in again.stdout.partition("\n")[0]
    other = called(
        *swept, "train.global_batch_size=24,12", "train.micro_batch_size=4", "optim.lr=0.5", "--table"
    )
    assert (
        other.returncode == 2
        and "train.global_batch_size=24: written with a different config: optim.lr" in other.stderr
    )
    assert other.stderr.endswith("choose another --out\n")


@pytest.mark.kills
def test_a_signal_stops_the_run_under_way_and_those_to_come(swept, tmp_path):
    swept += ["train.length=2,4000,3000"]
    log = tmp_path / "out/logs/train.length=4000.log"
    command = [sys.executable, "-m", "partialfc", *swept]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while "loss" not in (log.read_text() if log.exists() else "") and time.monotonic() < until:
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=60)
    assert (
        running.returncode == 75 and "2 of 3: train.length=4000: stopped; rerun the command to resume" in out
    )
    assert "stopped by SIGTERM at step" in log.read_text() and "train.length=3000" not in out


def test_an_undefined_score_is_a_dash():
    nan = float("nan")
    assert format_mean_interval([nan, 0.5]) == "-" and format_mean_interval([nan]) == "-"
    rows = [
        ResultRow((("seed", "0"),), {"one_kind": [nan], "lfw": [0.9]}),
        ResultRow((("seed", "1"),), {"one_kind": [nan], "lfw": [0.8]}),
    ]
    assert SweepResults(rows, [], 0).rank_sums() == [1.0, 2.0]
