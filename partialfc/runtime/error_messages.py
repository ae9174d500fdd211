"""Messages of errors about files: absolute paths, files of similar names, and the space of full disks."""

import errno
import os
import re
import shutil
from contextlib import suppress

from partialfc.runtime.text import escape_unprintable

_PATH = re.compile(
    r"(?P<before>(?:checkpoint )?)(?P<path>[^\s:,][^:,]*)(?P<after>(?:, (?:line|key|row) \d+)?: .*)"
)
_MISSING = re.compile(r": (?:no such|not found|missing)", re.IGNORECASE)
_MAX_LISTED = 3  # files of similar names


def format_error(error: Exception) -> str:
    """Return the message of an error on one line, with unprintable characters escaped.

    A path at its start is absolute. The message of a system error also names files similar to a missing one, and the
    free space of a full disk.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        path = os.path.abspath(os.fsdecode(error.filename))
        text = f"{path}: {error.strerror}{_format_free_space(error, path)}{_describe_similar(error, path)}"
    else:
        text = _with_absolute_path(text)
    return escape_unprintable(text) or type(error).__name__


def _with_absolute_path(message: str) -> str:
    """Make a relative path at the start of a message absolute, if it exists or the message says that it does not."""
    found = _PATH.fullmatch(message)
    if found is None or os.path.isabs(found["path"]) or "://" in message[: found.end("path") + 3]:
        return message
    missing = _MISSING.match(found["after"]) and " " not in found["path"]
    if not os.path.lexists(found["path"]) and not missing:
        return message
    return f"{found['before']}{os.path.abspath(found['path'])}{found['after']}"


def _format_free_space(error: OSError, path: str) -> str:
    """Return the free space of a full disk; empty for other errors."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    with suppress(OSError):
        return f" ({shutil.disk_usage(folder).free / 2**20:.1f} MiB free)"
    return ""


def _describe_similar(error: OSError, path: str) -> str:
    """Return the files that differ from a missing one by suffix or case, or the folder that is missing."""
    if error.errno != errno.ENOENT:
        return ""
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        while not os.path.isdir(os.path.dirname(folder)):
            folder = os.path.dirname(folder)
        return f"; {os.path.dirname(folder)} has no {os.path.basename(folder)}"
    stem = os.path.splitext(name)[0].casefold()
    with suppress(OSError):
        similar = sorted(it for it in os.listdir(folder) if os.path.splitext(it)[0].casefold() == stem)
        if similar:
            return f"; found {', '.join(similar[:_MAX_LISTED])}"
    return ""
