"""The time of sections, each without those inside it."""

import time

import pytest
import torch

from partialfc.runtime import timing
from partialfc.runtime.timing import Timeline, section, use_timeline


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Its last number is the time."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[-1])
    return now


def test_a_section_inside_another_is_not_counted_twice(clock):
    with use_timeline(torch.device("cpu")) as timeline:
        for _ in range(2):
            clock.append(clock[-1] + 100)  # between the steps: nobody's
            with section("backbone"):
                clock.append(clock[-1] + 1)
                with section("communication"):
                    clock.append(clock[-1] + 10)
                clock.append(clock[-1] + 2)
            with section("head"):
                clock.append(clock[-1] + 5)
        assert timeline.seconds_of(timeline.take_marks()) == {"backbone": 6, "communication": 20, "head": 10}
        assert timeline.seconds_of(timeline.take_marks()) == {}


def test_a_section_that_fails_ends(clock):
    with use_timeline(torch.device("cpu")) as timeline:
        with pytest.raises(KeyError), section("head"):
            raise KeyError
        clock.append(9.0)
        assert timeline.seconds_of(timeline.take_marks()) == {"head": 0}


def test_nothing_is_kept_where_nobody_measures():
    with section("head"):
        pass
    with use_timeline(torch.device("cpu")) as timeline:
        assert timeline.seconds_of(timeline.take_marks()) == {}
    with use_timeline(torch.device("cpu")):  # once more: the first has ended
        pass


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_gpus_time():
    timeline = Timeline(torch.device("cuda"))
    timeline.enter("sleep")
    began = time.perf_counter()
    torch.cuda._sleep(100_000_000)
    timeline.leave()
    assert time.perf_counter() - began < 0.01 < timeline.seconds_of(timeline.take_marks())["sleep"]


def test_the_peak_of_memory_is_what_the_system_says():
    before = timing.peak_memory(torch.device("cpu"))
    torch.ones(before // 4)
    assert before < timing.peak_memory(torch.device("cpu")) < 4 * before
