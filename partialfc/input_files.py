"""Files that a user names. Reading a named pipe or a device could block, or never end."""

import re
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
_HEAD_BYTES = 512  # that identify the content of a file
# Content of other kinds than the user thinks, by the first bytes.
_OTHERS = (
    (
        re.compile(rb"version https://git-lfs"),
        "a pointer of Git LFS; download the file itself (git lfs pull)",
    ),
    (re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE), "a web page, of a failed download"),
    (re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd"), "a compressed file; decompress it first"),
)


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


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        InputError: If it is not a file.
        OSError: If it cannot be read.
    """
    require_file(path)
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def describe_other_content(head: bytes) -> str | None:
    """Return the content of a file of no supported format, from its first bytes; None if it is unknown."""
    if not head:
        return "an empty file"
    if not any(head):
        return "zeros only, of an incomplete copy"
    return next((name for pattern, name in _OTHERS if pattern.match(head)), None)
