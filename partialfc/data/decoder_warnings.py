"""What the JPEG library prints of damaged data that it decodes all the same, of each image, in a process that reads images."""

import os
import sys

_MARK = "JPEG"  # of its warnings: "Corrupt JPEG data: ...", "Premature end of JPEG file"
_captured: int | None = None  # a file in memory, in place of the process's stderr


def capture() -> None:
    """Keep what libraries print to stderr from now on; Python goes on printing where it did. For a process of one thread."""
    global _captured
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    _captured = os.memfd_create("stderr")
    os.dup2(_captured, 2)


def warned() -> bool:
    """Return True if the JPEG library has warned since the last call; pass on everything else that was printed."""
    if _captured is None or not (size := os.fstat(_captured).st_size):
        return False
    lines = os.pread(_captured, size, 0).decode(errors="replace").splitlines(keepends=True)
    os.ftruncate(_captured, 0)
    os.lseek(_captured, 0, os.SEEK_SET)
    sys.stderr.writelines(line for line in lines if _MARK not in line)
    return any(_MARK in line for line in lines)
