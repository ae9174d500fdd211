"""Lifecycle of the ranks on this machine.

torch's elastic agent starts and monitors them. Unlike torchrun, signals are forwarded immediately, once to
every rank. The exit code is that of the rank that failed first, which reports its own error unless a signal
killed it.
"""

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from subprocess import Popen
from types import FrameType
from typing import Any

from rich.console import Console
from torch.distributed.elastic.agent.server import WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from partialfc.launching.rendezvous import ClusterSpec, create_rendezvous
from partialfc.runtime.exit_codes import (
    EXIT_BAD_INPUT,
    EXIT_DIVERGED,
    EXIT_KILLED,
    EXIT_RANK_LOST,
    EXIT_STOPPED,
    hard_exit,
)
from partialfc.runtime.memory_limits import explain_signal
from partialfc.runtime.process import launcher_link
from partialfc.runtime.process.signals import handle_stop_signals, print_stopped

# Seconds for the launchers of other nodes to see their ranks fail with the same error. SLURM kills the
# remaining launchers when the first one exits, and then reports their exit code.
_PEER_EXIT_DELAY = 5
_STRAGGLER_TIMEOUT = 15  # seconds for the remaining ranks of a machine to exit
_KILL_DELAY = 3  # seconds between a second Ctrl-C and SIGKILL
# Longer paths do not fit in the addresses of sockets there: TMPDIR/partialfc-xxxxxxxx/pymp-xxxxxxxx/listener-xxxxxxxx.
_MAX_TMPDIR_LENGTH = 107 - 51
_EXIT_SIGINT = EXIT_KILLED + signal.SIGINT
# A restart would not help after these, or is not desired.
_FINAL_EXIT_CODES = (0, EXIT_BAD_INPUT, EXIT_DIVERGED, EXIT_STOPPED, _EXIT_SIGINT)


def launch_ranks(command: list[str], cluster: ClusterSpec, max_restarts: int, *, numa: bool = False) -> int:
    """Run the ranks, each a Python process with `command`, and return the exit code of the run.

    If a rank dies, all ranks are restarted, at most `max_restarts` times. Signals are ignored afterwards: the
    exit code is known.

    Args:
        command: Arguments of Python.
        cluster: Nodes of the run.
        max_restarts: Maximum number of restarts.
        numa: Whether each rank is bound to the cores and memory nearest to its GPU.

    Returns:
        Exit code.
    """
    # The failed rank reports its error itself.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ[launcher_link.LAUNCHER_PID_VARIABLE] = str(os.getpid())
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # the remaining signals are handled here
    processes, code = _RankProcesses(), 0
    with processes.forward_signals():
        for attempt in range(max_restarts + 1):
            code = _attempt(command, cluster, attempt, processes, numa)
            if code in _FINAL_EXIT_CODES or attempt == max_restarts or processes.is_cut_off:
                break
            processes.running = []
            _print_error(f"restarting all ranks (attempt {attempt + 1} of {max_restarts})")
    Console().show_cursor()  # a killed rank could not stop its live display
    if code == EXIT_BAD_INPUT and cluster.nodes > 1:
        time.sleep(_PEER_EXIT_DELAY)
    if processes.is_cut_off:  # a thread still waits in native code, which Python's own exit could not end
        hard_exit(code)
    return code


def _attempt(
    command: list[str], machines: ClusterSpec, attempt: int, processes: "_RankProcesses", numa: bool
) -> int:
    meeting = create_rendezvous(machines, attempt)
    spec = WorkerSpec(
        role="ranks",
        local_world_size=machines.ranks_per_node,
        entrypoint=sys.executable,
        args=tuple(command),
        rdzv_handler=meeting,
        max_restarts=0,
        monitor_interval=0.1,
        local_addr=machines.local_address,
        **(_numa_options() if numa else {}),
    )
    with _temporary_folder() as processes.folder:
        try:
            result = _Agent(spec, DefaultLogsSpecs(log_dir=processes.folder), processes).run()
        finally:
            processes.is_cut_off = not meeting.try_shutdown()
    if result is None:  # the rendezvous was closed
        _print_error("error: the launchers of other machines ended before this one joined; the run ended")
        return EXIT_RANK_LOST
    return processes.exit_code(result.failures) if result.is_failed() else 0


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """Create the folder of the temporary files of this process, the ranks and their workers, and remove it at the end.

    Ranks and workers that are killed leave files behind.

    Yields:
        Path of the folder.
    """
    given = os.environ.get("TMPDIR")
    short = len(tempfile.gettempdir()) <= _MAX_TMPDIR_LENGTH or not os.access("/tmp", os.W_OK)
    with tempfile.TemporaryDirectory(
        prefix="partialfc-", dir=None if short else "/tmp", ignore_cleanup_errors=True
    ) as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield folder
        finally:
            os.environ.pop("TMPDIR")
            if given is not None:
                os.environ["TMPDIR"] = given


def _numa_options() -> dict[str, Any]:
    """Return the NUMA argument of a WorkerSpec; empty if this version of PyTorch does not support it."""
    try:
        from torch.numa.binding import AffinityMode, NumaOptions
    except ImportError:
        _print_error("warning: launch.numa: not supported by this version of PyTorch")
        return {}
    return {"numa_options": NumaOptions(AffinityMode.NODE, should_fall_back_if_binding_fails=True)}


class _RankProcesses:
    """Ranks that run on this machine, and the signals for them."""

    def __init__(self) -> None:
        self.running: list[Popen[bytes]] = []
        self.folder = ""  # of the agent's own files; none yet
        self.is_cut_off = False  # whether the rendezvous does not answer
        self._killed: set[int] = set()  # killed by this process
        self._ended: list[int] = []  # pids in the order of their exits
        self._forwarded: set[int] = set()  # forwarded signals
        self._interrupted = False  # by a second Ctrl-C

    @contextmanager
    def forward_signals(self) -> Iterator[None]:
        """Forward signals to every rank during the block; a second Ctrl-C kills ranks that do not exit.

        Signals are ignored afterwards.
        """
        with handle_stop_signals(self._handle_signal):
            yield

    def _handle_signal(self, signal_number: int, frame: FrameType | None) -> None:
        again = signal_number == signal.SIGINT and signal_number in self._forwarded
        self._forwarded.add(signal_number)
        _send(signal_number, self.running)
        if again and not self._interrupted:
            self._interrupted = True
            print_stopped(signal_number, again=True)
            threading.Timer(_KILL_DELAY, _send, [signal.SIGKILL, self.running]).start()
        if not self.running:  # ranks that are being started exit with this process
            print_stopped(signal_number, again=False)
            shutil.rmtree(self.folder, ignore_errors=True)
            hard_exit(EXIT_STOPPED)  # see StopRequest

    def track(self, ranks: list[Popen[bytes]]) -> None:
        """Add ranks that have been started."""
        self.running, self._ended = ranks, []
        for rank in ranks:
            threading.Thread(target=self._note_end, args=(rank,), daemon=True).start()
        threading.Thread(target=self._end_stragglers, args=(ranks,), daemon=True).start()

    def _note_end(self, rank: Popen[bytes]) -> None:
        """Wait for a rank to exit, and record the order."""
        rank.wait()
        self._ended.append(rank.pid)

    def _end_stragglers(self, ranks: list[Popen[bytes]]) -> None:
        """Kill the remaining ranks some time after the first exit, since they may wait for it forever."""
        while all(rank.poll() is None for rank in ranks):
            time.sleep(0.5)
        limit = time.monotonic() + _STRAGGLER_TIMEOUT
        while remaining := [rank for rank in ranks if rank.poll() is None]:
            time.sleep(0.5)
            if time.monotonic() > limit:
                self._killed |= {rank.pid for rank in remaining}
                _send(signal.SIGKILL, remaining)
                return

    def exit_code(self, failures: Mapping[int, ProcessFailure]) -> int:
        """Return the exit code of the first failure; report a rank that was killed, since it could not."""
        if self._interrupted:
            return _EXIT_SIGINT
        own = self._in_order([it for it in failures.values() if it.pid not in self._killed])
        for number in self._forwarded:
            # The signal arrived before the rank's handler was installed.
            if any(it.exitcode == -number for it in own):
                if 0 not in failures or failures[0].exitcode == -number:  # otherwise rank 0 has reported it
                    print_stopped(number, again=False)
                return EXIT_STOPPED
            if (
                0 in failures
                and failures[0].pid in self._killed
                and any(it.exitcode == EXIT_STOPPED for it in own)
            ):
                # It was waiting for the others inside a library that ignores signals.
                _print_error(f"stopped by {signal.Signals(number).name}; rank 0 did not exit and was killed")
                return EXIT_STOPPED
        # Others may have aborted only because this one exited.
        first = next((it for it in own if it.exitcode != EXIT_RANK_LOST), None)
        if first is None:
            return EXIT_RANK_LOST
        if first.exitcode > 0:  # it reported its error itself
            return first.exitcode
        rank = next(rank for rank, it in failures.items() if it is first)
        _print_error(
            f"rank {rank} on {socket.gethostname()} was killed by {explain_signal(-first.exitcode)}; "
            "resume with the same command"
        )
        return EXIT_KILLED - first.exitcode

    def _in_order(self, failures: list[ProcessFailure]) -> list[ProcessFailure]:
        """Return the failures in the order of the exits; those not observed come last."""
        places = {pid: place for place, pid in enumerate(self._ended)}
        return sorted(failures, key=lambda it: places.get(it.pid, len(places)))


class _Agent(LocalElasticAgent):
    """Elastic agent that exposes the processes it has started."""

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, processes: _RankProcesses) -> None:
        super().__init__(spec, logs, exit_barrier_timeout=_STRAGGLER_TIMEOUT)
        self._processes = processes

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started = super()._start_workers(worker_group)
        assert isinstance(self._pcontext, SubprocessContext)  # since the entry point is a command
        self._processes.track([it.proc for it in self._pcontext.subprocess_handlers.values()])
        return started


def _send(number: int, ranks: list[Popen[bytes]]) -> None:
    for rank in ranks:
        rank.send_signal(number)


def _print_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
