"""Exit codes, and exits with a one-line message for bad input."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from partialfc.errors import InputError

EXIT_BAD_INPUT = 2  # bad input
EXIT_DIVERGED = 3  # diverged run
EXIT_RANK_LOST = 4  # another rank was lost
EXIT_STOPPED = 75  # stopped by a signal, to be started again: EX_TEMPFAIL of sysexits.h


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Exit with one line on stderr, without traceback, on an InputError or OSError.

    Any other exception is a bug: it keeps its traceback and exits with code 1.
    """
    try:
        yield
    except (InputError, OSError) as error:
        print(f"error: {format_error(error)}", file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_INPUT)


@contextmanager
def exit_on_internal_error() -> Iterator[None]:
    """Exit immediately with traceback and exit code 1 on an internal error."""
    try:
        yield
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


def format_error(error: Exception) -> str:
    """Return the message of an error on one line, with unprintable characters escaped.

    The message of a system error starts with its file.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    return shown or type(error).__name__
