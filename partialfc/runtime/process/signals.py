"""The signals that ask a run to end: noted, so that it ends between two steps, with nothing lost."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from partialfc.runtime.exit_codes import STOPPED, end_at_once

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@contextmanager
def heard_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Around what ends the process: SIGNALS go to the handler. Afterwards they are ignored, so that the exit code stays
    what it is. A signal that is ignored before, as nohup ignores SIGHUP, stays so.
    """
    heard = [one for one in SIGNALS if signal.getsignal(one) != signal.SIG_IGN]
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
    `deferred` it is noted in `received`, for the run to end where it can; there a second SIGINT ends it at once.

    first: whether this is the rank that says so. launched: whether a launcher says that it was a second SIGINT.
    """

    def __init__(self, *, first: bool = True, launched: bool = False) -> None:
        self.received = 0  # the number of the first signal; 0: none
        self._first, self._launched = first, launched
        self._deferred = False
        self._over = False

    def asked(self) -> int:
        """The number of the first signal; 0: none."""
        return self.received

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around the run, in the main thread of a process that ends with it; see heard_by."""
        with heard_by(self._receive):
            yield

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Around the steps: there is something to save."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred, self._over = False, True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._over:  # the run has ended, and the process is about to
            return
        again = self.received == number == signal.SIGINT
        if self._deferred and not again:
            self.received = self.received or number
            return
        if not self._launched if again else self._first:
            say_stopped(number, again=again)
        # Not by SystemExit: raised inside a library's callback it is lost, and the run goes on, or it aborts the process.
        end_at_once(128 + number if again else STOPPED)


def say_stopped(number: int, *, again: bool) -> None:
    """The line of a process that a signal ends at once."""
    when = "again, without waiting for the run to be saved" if again else "with nothing to save"
    # Past Python's buffer, which the handler may have interrupted.
    os.write(2, f"stopped by {signal.Signals(number).name} {when}\n".encode())


@contextmanager
def held_back() -> Iterator[None]:
    """Around the start of helper processes: they inherit a mask in which these signals never reach them, wherever they
    are sent; the run tells its helpers when to end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # its start, else that of the first helper, lets SIGINT and SIGTERM through
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
