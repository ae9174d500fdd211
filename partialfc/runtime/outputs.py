"""Outputs of commands: what another call made is never replaced, and nothing is written into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from partialfc.errors import InputError
from partialfc.runtime.files import atomic_write

MARKER = ".partialfc"  # in an output folder: the call that began it


def claim_file(path: Path, *, overwrite: bool) -> None:
    """Raise InputError if a file exists already, and is not to be overwritten."""
    if path.is_dir():
        raise InputError(f"{path}: expected the name of a file, got a folder")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; pass --overwrite to replace it")


@contextmanager
def claimed_folder(out: Path, *call: object, overwrite: bool) -> Iterator[None]:
    """Within the block, write to a folder that is missing, empty, or begun by the same call.

    A folder in which nothing was written is left as it was.

    Args:
        out: The folder.
        call: The command, its inputs, and the options that decide what is written.
        overwrite: Whether the folder may be of another call.

    Raises:
        InputError: The folder holds something else.
    """
    text = " ".join(_relative(it, out) if isinstance(it, Path) else str(it) for it in call)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder, got a file")
    marker = out / MARKER
    made = marker.read_text(encoding="utf-8", errors="surrogateescape") if marker.is_file() else None
    others = [it for it in out.iterdir() if it != marker] if out.is_dir() else []
    if others and made != text and not overwrite:
        by = f", made by: partialfc {made}" if made else ""
        raise InputError(
            f"{out}: expected a folder that is missing, empty, or begun by the same call, got {others[0].name}"
            f"{' and others' if len(others) > 1 else ''}{by}; pass --overwrite to write there all the same"
        )
    existed = out.is_dir()
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(marker) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    try:
        yield
    finally:
        if all(it == marker for it in out.iterdir()):
            marker.unlink(missing_ok=True)
            if not existed:
                out.rmdir()


def _relative(path: Path, out: Path) -> str:
    """Return a path seen from the output folder: folders that are moved together stay of the same call."""
    return os.path.relpath(path.resolve(), out.resolve())
