"""Section times of all ranks, and the rank that delays the others."""

import json
import time
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from helpers.runs import config_of, trained

from partialfc.config import Config
from partialfc.monitoring.rank_times import RankTimes, RankTimesReport
from partialfc.runtime import comm
from partialfc.training.microbatches import MicroBatchRunner


def exchanged(windows: list[list[float]]) -> list[RankTimesReport | None]:
    """Return the reports of windows of two steps, given each rank's milliseconds of the backbone."""
    dist_ctx = comm.create_dist_context(torch.device("cpu"))
    times = RankTimes(dist_ctx)
    parts = [{"backbone": 2 * window[dist_ctx.rank] / 1000, "communication": 1.0} for window in windows]
    return [times.exchange(2 * number, 2, part) for number, part in enumerate([*parts, {}], start=1)]


def test_all_ranks_know_the_spread_and_the_slowest(ranks):
    first, *rest = ranks.run(3, exchanged, [[10.0, 40.0, 20.0], [30.0, 5.0, 10.0]])
    assert first[0] is None and rest == [first, first]
    assert [(report.step, report.slowest) for report in first[1:]] == [(2, 1), (4, 0)]
    assert first[1].sections["backbone"] == pytest.approx({"min": 10, "median": 20, "max": 40})
    assert first[1].sections["communication"] == pytest.approx({"min": 500, "median": 500, "max": 500})
    assert first[1].sections["data"] == {"min": 0, "median": 0, "max": 0}


def test_a_rank_that_stays_slow_is_reported_once(ranks):
    slow, equal, other = [10.0, 20.0, 10.0], [10.0, 11.0, 10.0], [20.0, 10.0, 10.0]
    windows = [slow, slow, other, slow, slow, slow, slow, equal, slow, slow, slow]
    (first, *_) = ranks.run(3, exchanged, windows)
    assert [report.step // 2 for report in first[1:] if report.warning] == [6, 11]
    assert "rank 1 on " in first[6].warning and "it works 20.0 ms in each step" in first[6].warning


def train_with_a_slow_rank(config: Config) -> None:
    forward = MicroBatchRunner.forward

    def delayed(self, *arguments, **named):
        time.sleep(0.2 * dist.get_rank())
        return forward(self, *arguments, **named)

    with mock.patch.object(MicroBatchRunner, "forward", delayed):
        trained(config)


def test_a_run_names_its_slow_rank(ranks, pack, tmp_path):
    config = config_of(pack, tmp_path, train={"length": 12}, log={"every": 2})
    ranks.run(2, train_with_a_slow_rank, config)
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    records = [line for line in found if "rank_time_ms" in line]
    assert [line["step"] for line in records] == [2, 4, 6, 8]
    for line in records:
        assert line["slowest_rank"] == 1
        assert line["rank_time_ms"]["backbone"]["max"] > 200
        for times in line["rank_time_ms"].values():
            assert 0 <= times["min"] <= times["median"] <= times["max"]
    assert (tmp_path / "log.txt").read_text().count("warning: step 6  rank 1 on ") == 1
