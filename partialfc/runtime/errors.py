"""How a program ends on bad input: one line, exit code 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 2  # of a program that was given bad input


@contextmanager
def told() -> Iterator[None]:
    """Ends the program on a ValueError or an OSError, which are the user's: its line on stderr, no traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
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
