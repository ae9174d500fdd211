"""How a program ends: the exit codes; and on bad input, with one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from partialfc.errors import InputError

EXIT_BAD_INPUT = 2  # of a program that was given bad input
EXIT_DIVERGED = 3  # of a run whose loss is lost
EXIT_RANK_LOST = 4  # of a rank that lost another
EXIT_STOPPED = 75  # of a run that a signal ended, to be started again: EX_TEMPFAIL of sysexits.h


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """End the program on an InputError or an OSError, which are the user's: its line on stderr, no traceback.

    Anything else is a defect of ours: it keeps its traceback, and exit code 1."""
    try:
        yield
    except (InputError, OSError) as error:
        print(f"error: {format_error(error)}", file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_INPUT)


@contextmanager
def exit_on_internal_error() -> Iterator[None]:
    """End the program on a defect of ours, with its traceback and exit code 1, as Python would, but at once."""
    try:
        yield
    except Exception:
        sys.excepthook(*sys.exc_info())
        hard_exit(1)


def hard_exit(code: int) -> NoReturn:
    """End the process without waiting for its threads. Python's own end aborts it, exit code 134, where a thread comes
    back from a collective meanwhile. Helper processes end by themselves when they see that this one has.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(RuntimeError):  # of a signal's handler, within a line that is being written
            stream.flush()
    os._exit(code)


def format_error(error: Exception) -> str:
    """What an error says, without line breaks and with what cannot be printed escaped; of the system's errors, the file
    first.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    return shown or type(error).__name__
