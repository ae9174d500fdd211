"""The watch over ranks that stand still; whole runs with one that does are in test_lost_ranks.py."""

import threading

import pytest
import torch.distributed as dist

from partialfc.runtime.process.watchdog import Entry, Watchdog, late_ranks


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
    entries = [{rank: Entry(*it, "n1") for rank, it in enumerate(written)} for written in (before, now)]
    assert late_ranks(*entries).keys() == late
