"""Exit codes, and exits with a one-line message for bad input."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from partialfc.errors import InputError
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.process.limits import explain_limit

EXIT_BAD_INPUT = 2  # bad input
EXIT_DIVERGED = 3  # diverged run
EXIT_RANK_LOST = 4  # another rank was lost
EXIT_STOPPED = 75  # stopped by a signal, to be started again: EX_TEMPFAIL of sysexits.h
EXIT_KILLED = 128  # plus the number of the signal that killed a rank or a data worker: shell convention


class WorkerKilledError(RuntimeError):
    """A helper process was killed by a signal; the message is a single line."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Exit with one line on stderr, without traceback, on bad input or at a limit of the system.

    Bad input is an InputError or OSError. Any other exception is a bug: it keeps its traceback and exits with
    code 1.

    Raises:
        RuntimeError: If it is a bug.
    """
    try:
        yield
    except (InputError, OSError) as error:
        _exit_bad_input(explain_limit(error) or format_error(error))
    except RuntimeError as error:
        message = explain_limit(error)
        if message is None:
            raise
        _exit_bad_input(message)


def _exit_bad_input(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(EXIT_BAD_INPUT)


@contextmanager
def exit_on_internal_error() -> Iterator[None]:
    """Exit immediately on an error other than bad input: with a line if a worker was killed, else with traceback.

    The exit code is EXIT_KILLED plus the signal, or 1.
    """
    try:
        yield
    except WorkerKilledError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        hard_exit(EXIT_KILLED + error.signal_number)
    except Exception:
        sys.excepthook(*sys.exc_info())
        hard_exit(1)


def hard_exit(code: int) -> NoReturn:
    """Exit without waiting for threads.

    Python's own exit aborts the process with code 134 if a thread returns from a collective in the meantime.
    Helper processes exit when they notice that this one has exited.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(RuntimeError):  # in a signal handler that interrupts a write
            stream.flush()
    os._exit(code)
