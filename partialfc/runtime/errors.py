"""How a program ends on bad input: one line, exit code 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from partialfc.errors import InputError

EXIT_CODE = 2  # of a program that was given bad input


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """End the program on an InputError or an OSError, which are the user's: its line on stderr, no traceback.

    Anything else is a defect of ours: it keeps its traceback, and exit code 1."""
    try:
        yield
    except (InputError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(EXIT_CODE)


def one_line(error: Exception) -> str:
    """What an error says, without line breaks and with what cannot be printed escaped; of the system's errors, the file
    first.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    return shown or type(error).__name__
