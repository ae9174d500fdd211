"""Watchdog: every rank posts a heartbeat; when one stalls, a healthy rank reports it and ends the run.

Collectives time out after half an hour only, since rank 0 may generate or pack a data set. Between two steps
nothing takes that long.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from partialfc.runtime import comm, timing
from partialfc.runtime.comm import DistContext, Store
from partialfc.runtime.exit_codes import EXIT_RANK_LOST, hard_exit
from partialfc.runtime.host_memory import bind_thread

_HEARTBEAT_SECONDS = 5.0  # seconds between two heartbeats, or a quarter of the limit
_EXIT_DELAY = 2.0  # seconds after which ranks without a report exit, too
_STORE_TIMEOUT = 20.0  # seconds for the store to answer once a step has stalled


@dataclass(frozen=True)
class Heartbeat:
    """Progress of a rank."""

    count: int  # number of heartbeats
    step: int  # latest step that was started
    section: str  # current section of the step
    host: str
    finished: int = 0  # sections that its GPU has finished; 0 on a CPU
    finished_place: str = ""  # the last of these sections

    @property
    def is_waiting(self) -> bool:
        """True if the rank waits for other ranks."""
        return self.section.endswith(comm.COMM_SECTION)


class Watchdog:
    """Thread that ends a stalled process with EXIT_RANK_LOST.

    Args:
        dist_ctx: This rank and the others.
        store: Store shared by all ranks; None disables the watchdog.
        seconds: Maximum duration of a step.
        progress: Sections that this rank's GPU has finished.
        before_end: Called before the process ends itself. Its errors are reported and ignored.
    """

    def __init__(
        self,
        dist_ctx: DistContext,
        store: Store | None,
        seconds: float,
        *,
        progress: timing.DeviceProgress | None = None,
        before_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._device, self._progress, self._before_end = dist_ctx.device, progress, before_end
        self._rank, self._size, self._store, self._seconds = (
            dist_ctx.rank,
            dist_ctx.world_size,
            store,
            seconds,
        )
        self._often = min(_HEARTBEAT_SECONDS, seconds / 4)
        self._host, self._count, self._step = socket.gethostname(), 0, 0
        self._since: float | None = None  # start of the step; None outside of a step
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin_step(self, step: int) -> None:
        """Start the timer of a step."""
        self._step, self._since = step, time.monotonic()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Pause the watchdog during a long operation."""
        self._since = None
        yield
        self._since = time.monotonic()

    def start(self) -> None:
        """Start the thread."""
        if self._store is not None:
            self._thread = threading.Thread(
                target=self._watch, args=(self._store,), name="watchdog", daemon=True
            )
            self._thread.start()
            threading.Thread(target=self._guard, name="watchdog guard", daemon=True).start()

    def stop(self) -> None:
        """Stop and join the thread.

        Python's own exit aborts a process with code 134 if a thread is inside the store.
        """
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, store: Store) -> None:
        bind_thread(self._device)
        try:
            self._write(store)
            while not self._ended.wait(self._often):
                self._write(store)
                since = self._since
                if since is not None and time.monotonic() - since > self._seconds:
                    self._report_and_exit(store)
        except RuntimeError:  # the store ends with the launcher, as does this process, or the network is cut
            return

    def _guard(self) -> None:
        """End the process if the step has stalled and the store does not answer: this machine is cut off.

        The store waits in native code without a limit.
        """
        limit = self._seconds + 4 * self._often + _EXIT_DELAY + _STORE_TIMEOUT
        while not self._ended.wait(self._often):
            since = self._since
            if since is not None and time.monotonic() - since > limit:
                print(
                    f"error: rank {self._rank} on {self._host} stalled at step {self._step}, in "
                    f"{timing.current_sections()}; the machine of rank 0 does not answer",
                    file=sys.stderr,
                    flush=True,
                )
                self._end()

    def _write(self, store: Store) -> None:
        self._count += 1
        finished = self._progress.finished() if self._progress else (0, "")
        entry = [self._count, self._step, timing.current_sections(), self._host, *finished]
        store.set(str(self._rank), json.dumps(entry))

    def _read(self, store: Store) -> dict[int, Heartbeat]:
        ranks = [rank for rank in range(self._size) if store.check([str(rank)])]
        return {rank: Heartbeat(*json.loads(store.get(str(rank)))) for rank in ranks}

    def _report_and_exit(self, store: Store) -> None:
        """Compare two heartbeats to find stalled processes; return if the steps have finished in the meantime."""
        before = self._read(store)
        for _ in range(3):
            if self._ended.wait(self._often):
                return
            self._write(store)
        now = self._read(store)
        late = find_stalled_ranks(before, now, self._size)
        if self._rank == min(now.keys() - late.keys(), default=min(now)):
            for rank, text in late.items():
                print(f"error: rank {rank} {text}", file=sys.stderr, flush=True)
        else:
            time.sleep(_EXIT_DELAY)
        self._end()

    def _end(self) -> NoReturn:
        try:
            self._before_end()
        except Exception as error:  # a diagnosis never changes how a run ends
            print(f"warning: no diagnosis of rank {self._rank}: {error}", file=sys.stderr, flush=True)
        hard_exit(EXIT_RANK_LOST)  # the thread of the steps may never return


@contextmanager
def watch(
    dist_ctx: DistContext, seconds: float, before_end: Callable[[], None] = lambda: None
) -> Iterator[Watchdog]:
    """Watch the steps of a run. Collective: all ranks must call it."""
    with timing.followed(dist_ctx.device) as progress:
        store = comm.shared_store("watchdog")
        watchdog = Watchdog(dist_ctx, store, seconds, progress=progress, before_end=before_end)
        watchdog.start()
        try:
            yield watchdog
        finally:
            watchdog.stop()


def find_stalled_ranks(
    before: dict[int, Heartbeat], now: dict[int, Heartbeat], world_size: int
) -> dict[int, str]:
    """Return descriptions of the ranks that the others wait for.

    These are, in this order: ranks that have not started their steps; ranks whose process is stalled; ranks
    whose GPU has finished the fewest sections; ranks that are behind and not waiting; ranks that are behind.

    Args:
        before: Heartbeats of all ranks that have started their steps.
        now: Heartbeats some seconds later.
        world_size: Number of ranks.

    Returns:
        One description per rank.
    """
    if absent := set(range(world_size)) - now.keys():
        return dict.fromkeys(sorted(absent), "has not started its steps; the others wait for it")
    still = [rank for rank, entry in now.items() if rank in before and entry.count == before[rank].count]
    last = min(entry.step for entry in now.values())
    behind = [rank for rank, entry in now.items() if entry.step == last]
    late = still or _slow_gpus(now) or [rank for rank in behind if not now[rank].is_waiting] or behind
    words = {}
    for rank in late:
        entry = now[rank]
        process = "; its process is not running" if rank in still else ""
        if entry.finished_place and rank not in still:
            most = max(now.values(), key=lambda it: it.finished)
            process = f"; its GPU has finished {entry.finished_place}, others {most.finished_place}"
        words[rank] = f"on {entry.host} stalled at step {entry.step}, in {entry.section}{process}"
    return words


def _slow_gpus(entries: dict[int, Heartbeat]) -> list[int]:
    """Return the ranks whose GPU has finished fewer sections than others; none on CPUs, or if all are equal.

    The host of a rank runs ahead of its GPU: on the host, all ranks may wait in the same section.
    """
    fewest = min(entry.finished for entry in entries.values())
    slow = [rank for rank, entry in entries.items() if entry.finished == fewest]
    return slow if len(slow) < len(entries) else []
