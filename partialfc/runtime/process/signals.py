"""The signals that ask a run to end: noted, so that it ends between two steps, with nothing lost."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from partialfc.runtime.exit_codes import EXIT_STOPPED, hard_exit

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@contextmanager
def handle_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Around what ends the process: SIGNALS go to the handler. Afterwards they are ignored, so that the exit code stays
    what it is. A signal that is ignored before, as nohup ignores SIGHUP, stays so.
    """
    heard = [one for one in STOP_SIGNALS if signal.getsignal(one) != signal.SIG_IGN]
    for one in heard:
        signal.signal(one, handler)
    try:
        yield
    finally:
        for one in heard:
            signal.signal(one, signal.SIG_IGN)


class StopRequest:
    """What signals have asked of this process.

    While nothing could be lost, a signal ends the process at once, with a line and the exit code STOPPED; within
    `defer` it is noted in `signal_number`, for the run to end where it can; there a second SIGINT ends it at once.

    first: whether this is the rank that says so. launched: whether a launcher says that it was a second SIGINT.
    """

    def __init__(self, *, is_main: bool = True, has_launcher: bool = False) -> None:
        self.signal_number = 0  # the number of the first signal; 0: none
        self._first, self._launched = is_main, has_launcher
        self._deferred = False
        self._over = False

    def get_signal(self) -> int:
        """The number of the first signal; 0: none."""
        return self.signal_number

    @contextmanager
    def install(self) -> Iterator[None]:
        """Around the run, in the main thread of a process that ends with it; see heard_by."""
        with handle_stop_signals(self._handle_signal):
            yield

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Around the steps: there is something to save."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred, self._over = False, True

    def _handle_signal(self, signal_number: int, frame: FrameType | None) -> None:
        if self._over:  # the run has ended, and the process is about to
            return
        again = self.signal_number == signal_number == signal.SIGINT
        if self._deferred and not again:
            self.signal_number = self.signal_number or signal_number
            return
        if not self._launched if again else self._first:
            print_stopped(signal_number, again=again)
        # Not by SystemExit: raised inside a library's callback it is lost, and the run goes on, or it aborts the process.
        hard_exit(128 + signal_number if again else EXIT_STOPPED)


def print_stopped(number: int, *, again: bool) -> None:
    """The line of a process that a signal ends at once."""
    when = "again, without waiting for the run to be saved" if again else "with nothing to save"
    # Past Python's buffer, which the handler may have interrupted.
    os.write(2, f"stopped by {signal.Signals(number).name} {when}\n".encode())


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Around the start of helper processes: they inherit a mask in which these signals never reach them, wherever they
    are sent; the run tells its helpers when to end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # its start, else that of the first helper, lets SIGINT and SIGTERM through
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
