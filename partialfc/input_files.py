"""Files that a user names. Reading a named pipe or a device could block, or never end."""

import stat
from pathlib import Path

from partialfc.errors import InputError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def require_file(path: Path) -> None:
    """Check that a path is a file, or a link to one.

    Raises:
        InputError: If it is something else.
        OSError: If it does not exist.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        raise InputError(f"{path}: expected a file, found {_KINDS.get(kind, 'something else')}")


def read_file(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        InputError: If it is not a file.
        OSError: If it cannot be read.
    """
    require_file(path)
    return path.read_bytes()
