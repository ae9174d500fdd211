"""Stop signals: recorded, so that a run ends between two steps and nothing is lost."""

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
    """Send the stop signals to the handler during a block that ends the process.

    They are ignored afterwards, so that the exit code does not change. A signal that is already ignored, such
    as SIGHUP under nohup, stays ignored.
    """
    handled = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    for one in handled:
        signal.signal(one, handler)
    try:
        yield
    finally:
        for one in handled:
            signal.signal(one, signal.SIG_IGN)


class StopRequest:
    """Stop signals received by this process.

    Outside of `defer` a signal ends the process immediately, with a line and EXIT_STOPPED. Within `defer` it
    is stored in `signal_number`, and the run ends at the next opportunity. A second SIGINT ends the process
    immediately.

    Args:
        is_main: Whether this rank prints the line.
        launched: Whether a launcher reports a second SIGINT.
    """

    def __init__(self, *, is_main: bool = True, has_launcher: bool = False) -> None:
        self.signal_number = 0  # first signal; 0 if none
        self._first, self._launched = is_main, has_launcher
        self._deferred = False
        self._over = False

    def get_signal(self) -> int:
        """Return the first signal; 0 if there was none."""
        return self.signal_number

    @contextmanager
    def install(self) -> Iterator[None]:
        """Handle stop signals in the main thread of a process that ends with the run; see `handle_stop_signals`."""
        with handle_stop_signals(self._handle_signal):
            yield

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Defer signals while there is something to save."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred, self._over = False, True

    def _handle_signal(self, signal_number: int, frame: FrameType | None) -> None:
        if self._over:  # the run has ended, and the process is about to exit
            return
        again = self.signal_number == signal_number == signal.SIGINT
        if self._deferred and not again:
            self.signal_number = self.signal_number or signal_number
            return
        if not self._launched if again else self._first:
            print_stopped(signal_number, again=again)
        # Not SystemExit: within a callback of a library it would be lost or abort the process.
        hard_exit(128 + signal_number if again else EXIT_STOPPED)


def exit_on_stop_signals() -> None:
    """Exit with a line on a stop signal, until other handlers are installed."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _exit_stopped)


def _exit_stopped(signal_number: int, frame: FrameType | None) -> None:
    print_stopped(signal_number, again=False)
    hard_exit(EXIT_STOPPED)


def print_stopped(number: int, *, again: bool) -> None:
    """Print the line of a process that a signal ends immediately."""
    when = "a second time, without saving" if again else "with nothing to save"
    # Bypasses Python's buffer, which the handler may have interrupted.
    os.write(2, f"stopped by {signal.Signals(number).name} {when}\n".encode())


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Block the stop signals while helper processes start: they inherit the mask.

    Signals then never reach the helpers, and the run tells them when to exit.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # otherwise its start, or that of the first helper, unblocks SIGINT and SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
