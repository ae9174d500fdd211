"""How a program ends: the exit codes; and on bad input, with one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from partialfc.errors import InputError

EXIT_CODE = 2  # of a program that was given bad input
DIVERGED = 3  # of a run whose loss is lost
LOST = 4  # of a rank that lost another
STOPPED = 75  # of a run that a signal ended, to be started again: EX_TEMPFAIL of sysexits.h


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """End the program on an InputError or an OSError, which are the user's: its line on stderr, no traceback.

    Anything else is a defect of ours: it keeps its traceback, and exit code 1."""
    try:
        yield
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CODE)


@contextmanager
def exit_on_defect() -> Iterator[None]:
    """End the program on a defect of ours, with its traceback and exit code 1, as Python would, but at once."""
    try:
        yield
    except Exception:
        sys.excepthook(*sys.exc_info())
        end_at_once(1)


def end_at_once(code: int) -> NoReturn:
    """End the process without waiting for its threads. Python's own end aborts it, exit code 134, where a thread comes
    back from a collective meanwhile. Helper processes end by themselves when they see that this one has.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(RuntimeError):  # of a signal's handler, within a line that is being written
            stream.flush()
    os._exit(code)


def one_line(error: Exception) -> str:
    """What an error says, without line breaks and with what cannot be printed escaped; of the system's errors, the file
    first.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    return shown or type(error).__name__
