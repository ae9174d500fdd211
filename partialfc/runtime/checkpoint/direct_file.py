"""A new file that is written past the system's cache, where the file system can: it costs a tenth of the processor's time,
and pushes nothing out of memory that training needs.
"""

import errno
import fcntl
import mmap
import os
from pathlib import Path

_BUFFER = 8 << 20  # bytes; whole blocks of any disk
_DIRECT = getattr(os, "O_DIRECT", 0)  # of Linux


class DirectFile:
    """Collects what is written in a buffer of whole pages, as direct writes want it."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            self._file = os.open(path, flags | _DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            path.unlink(missing_ok=True)  # some make the file, and then refuse
            self._file = os.open(path, flags, 0o666)
        self._path = path
        self._buffer, self._filled = mmap.mmap(-1, _BUFFER), 0

    def write(self, content: memoryview) -> None:
        """Append some bytes. OSError names the file."""
        while content:
            part = content[: _BUFFER - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            content = content[len(part) :]
            if self._filled == _BUFFER:
                self._flush()

    def sync(self) -> None:
        """Write the rest, and return when all is on the disk."""
        self._disable_direct_io()
        self._flush()
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _flush(self) -> None:
        rest = memoryview(self._buffer)[: self._filled]
        self._filled = 0
        while rest:
            try:
                rest = rest[os.write(self._file, rest) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise OSError(error.errno, error.strerror, str(self._path)) from None
                self._disable_direct_io()  # not of this file system, or not after part of a buffer

    @property
    def _direct(self) -> bool:
        return bool(fcntl.fcntl(self._file, fcntl.F_GETFL) & _DIRECT)

    def _disable_direct_io(self) -> None:
        fcntl.fcntl(self._file, fcntl.F_SETFL, fcntl.fcntl(self._file, fcntl.F_GETFL) & ~_DIRECT)
