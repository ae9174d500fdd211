"""Warnings of the JPEG library about damaged data that it decodes anyway, per image, in a data worker."""

import os
import sys

from partialfc.runtime import platform

_MARK = "JPEG"  # in its warnings: "Corrupt JPEG data: ...", "Premature end of JPEG file"
_captured: int | None = None  # in-memory file that replaces the process's stderr


def capture() -> None:
    """Capture what libraries print to stderr from now on. `sys.stderr` is unchanged. For single-threaded processes."""
    global _captured
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    _captured = platform.anonymous_file("stderr")
    os.dup2(_captured, 2)


def warned() -> bool:
    """Return True if the JPEG library has warned since the last call; forward all other output."""
    if _captured is None or not (size := os.fstat(_captured).st_size):
        return False
    lines = os.pread(_captured, size, 0).decode(errors="replace").splitlines(keepends=True)
    os.ftruncate(_captured, 0)
    os.lseek(_captured, 0, os.SEEK_SET)
    sys.stderr.writelines(line for line in lines if _MARK not in line)
    return any(_MARK in line for line in lines)
