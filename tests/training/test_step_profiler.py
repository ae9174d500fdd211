"""`log.profile` writes a trace of the requested steps on every rank, and changes nothing else."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from helpers.runs import assert_refused, assert_same_bits, config_of, curve, trained, whole

from partialfc.config import ProfileConfig
from partialfc.runtime import comm
from partialfc.training.step_profiler import StepProfiler


def names_in(path: Path) -> list[str]:
    """Return the names of all events of a trace."""
    return [event.get("name", "") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]


def test_every_rank_writes_a_trace_of_the_steps_with_their_sections(ranks, pack, tmp_path):
    outputs = {name: tmp_path / name for name in ("traced", "plain")}
    states = {}
    for name, output in outputs.items():
        log = {"profile": {"start": 3, "steps": 2}} if name == "traced" else {}
        config = config_of(pack, output, train={"length": 6}, log=log)
        states[name] = whole(ranks.run(2, trained, config))
    assert_same_bits(states["traced"], states["plain"])
    assert curve(outputs["traced"]) == curve(outputs["plain"])
    assert not (outputs["plain"] / "profile").exists()
    folder = outputs["traced"] / "profile"
    assert sorted(it.name for it in folder.iterdir()) == [f"rank_0000{n}.pt.trace.json.gz" for n in (0, 1)]
    for path in folder.iterdir():
        found = names_in(path)
        for section, times in {"backbone": 4, "head": 4, "optimizer": 2}.items():
            assert found.count(section) == times, (section, found.count(section))
        assert any("conv" in it for it in found)
    assert (
        f"traces of the profiled steps, one per rank: {folder}" in (outputs["traced"] / "log.txt").read_text()
    )


def test_steps_beyond_the_end_are_refused(ranks, pack, tmp_path):
    config = config_of(pack, tmp_path, train={"length": 6}, log={"profile": {"start": 5, "steps": 3}})
    assert_refused(ranks, 1, config, "log.profile: steps 5 to 7; expected at most the 6 steps of the run")


def profiled(folder: str, first: int, last: int) -> list[str]:
    """Return the messages after each of some steps."""
    profiler = StepProfiler(
        ProfileConfig(start=3, steps=2), Path(folder), comm.create_dist_context(torch.device("cpu"))
    )
    messages = []
    for step in range(first, last + 1):
        profiler.begin_step(step)
        torch.ones(2) + 1
        messages.append(profiler.end_step())
    profiler.close()
    return messages


@pytest.mark.parametrize(("first", "written"), [(1, 4), (2, 4), (3, 5), (4, None)])
def test_a_resumed_run_warms_up_in_its_first_step(ranks, tmp_path, first, written):
    (messages,) = ranks.run(1, profiled, str(tmp_path), first, 7)
    assert [first + turn for turn, message in enumerate(messages) if message] == (
        [written] if written else []
    )


def test_a_run_that_stops_in_between_writes_what_it_has(ranks, tmp_path):
    assert ranks.run(1, profiled, str(tmp_path), 1, 3) == [["", "", ""]]
    assert names_in(tmp_path / "rank_00000.pt.trace.json.gz")


def test_a_trace_that_cannot_be_written_ends_nothing(ranks, tmp_path):
    (tmp_path / "file").touch()
    (messages,) = ranks.run(1, profiled, str(tmp_path / "file"), 1, 5)
    assert messages[3].startswith(f"{tmp_path}/file") and messages[3].endswith(
        "training continues without the trace"
    )
