"""The watch over ranks that stand still; whole runs with one that does are in test_lost_ranks.py."""

import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from partialfc.runtime import timing
from partialfc.runtime.process import flight_recorder, watchdog
from partialfc.runtime.process.watchdog import Heartbeat, Watchdog, find_stalled_ranks


class SlowStore(dist.HashStore):
    """As over a network: it is long within a call."""

    def __init__(self) -> None:
        super().__init__()
        self.within, self.go_on = threading.Event(), threading.Event()

    def set(self, key: str, value: str) -> None:
        self.within.set()
        self.go_on.wait(20)
        super().set(key, value)


def test_no_watch_is_left_when_the_steps_are_over(alone):
    """Else a process that ends is aborted, exit code 134, when its watch is just within the store."""
    store = SlowStore()
    watchdog = Watchdog(alone, store, seconds=0.04)
    watchdog.start()
    assert store.within.wait(20)
    threading.Timer(0.2, store.go_on.set).start()
    watchdog.stop()
    assert store.check(["0"]) and "watchdog" not in {thread.name for thread in threading.enumerate()}


def test_a_watch_without_a_store_ends_at_once(alone):
    watchdog = Watchdog(alone, None, seconds=0.04)
    watchdog.start()
    watchdog.stop()


def test_a_rank_without_a_heartbeat_has_not_started():
    entry = {0: Heartbeat(1, 5, "head, communication", "n1"), 2: Heartbeat(1, 5, "head, communication", "n1")}
    assert find_stalled_ranks(entry, entry, 3) == {1: "has not started its steps; the others wait for it"}


@pytest.mark.parametrize(
    ("before", "now", "late"),
    [
        # the third process was stopped: it writes no more
        ([(1, 5, "head"), (1, 5, "data, communication"), (1, 5, "head, communication")],
         [(4, 5, "head, communication"), (4, 5, "data, communication"), (1, 5, "head, communication")], {2}),
        # the second reads its images, for which the others wait
        ([(1, 5, "data, communication"), (1, 4, "data"), (1, 5, "data, communication")],
         [(4, 5, "data, communication"), (4, 4, "data"), (4, 5, "data, communication")], {1}),
        # all wait for each other in the same step
        ([(1, 5, "head, communication")] * 2, [(4, 5, "head, communication")] * 2, {0, 1}),
    ],
)  # fmt: skip
def test_who_is_late(before, now, late):
    entries = [{rank: Heartbeat(*it, "n1") for rank, it in enumerate(written)} for written in (before, now)]
    assert find_stalled_ranks(*entries, len(now)).keys() == late


def test_a_hang_in_nccl_names_the_rank_whose_gpu_is_behind():
    """All hosts have run ahead, and wait for the device in the same place."""
    waits = "report"
    before = {rank: Heartbeat(1, 7, waits, "n1", 40, "head") for rank in range(3)}
    now = {
        0: Heartbeat(4, 7, waits, "n1", 40, "head"),
        1: Heartbeat(4, 7, waits, "n2", 38, "data"),
        2: Heartbeat(4, 7, waits, "n2", 40, "head"),
    }
    (text,) = find_stalled_ranks(before, now, len(now)).values()
    assert text == "on n2 stalled at step 7, in report; its GPU has finished data, others head"


class Event:
    reached = False

    def record(self) -> None: ...

    def query(self) -> bool:
        return self.reached


def test_what_a_gpu_has_finished_is_known_without_waiting(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "Event", lambda: events.append(Event()) or events[-1])
    with timing.followed(torch.device("cuda:1")) as progress:
        for name in ("data", "head", "optimizer"):
            with timing.section(name):
                pass
        assert progress.finished() == (0, "the start")
        events[0].reached = events[1].reached = True
        assert progress.finished() == (2, "head")
        events[2].reached = True
        assert progress.finished() == (3, "optimizer")
    with timing.section("after"):
        pass
    assert len(events) == 3
    with timing.followed(torch.device("cpu")) as progress:
        assert progress is None


def test_a_diagnosis_that_fails_does_not_change_how_a_run_ends(monkeypatch, capfd):
    codes = []
    monkeypatch.setattr(watchdog, "hard_exit", codes.append)
    ranks = SimpleNamespace(rank=0, world_size=1, device=torch.device("cpu"))
    watch = Watchdog(ranks, None, seconds=0.04, before_end=lambda: 1 / 0)
    watch._report_and_exit(dist.HashStore())
    assert codes == [4]
    assert capfd.readouterr().err.splitlines()[-1] == "warning: no diagnosis of rank 0: division by zero"


def test_without_nccl_the_flight_recorder_says_so(tmp_path):
    with pytest.raises(ImportError):
        flight_recorder.dump(tmp_path / "traces", 0)
    assert not (tmp_path / "traces").exists()


def test_the_thread_of_the_watch_uses_the_ranks_gpu(monkeypatch):
    devices = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda it: devices.append((it, threading.current_thread().name))
    )
    ranks = SimpleNamespace(rank=0, world_size=1, device=torch.device("cuda:1"))
    watch = Watchdog(ranks, dist.HashStore(), seconds=60)
    watch.start()
    watch.stop()
    assert devices == [(torch.device("cuda:1"), "watchdog")]
