"""Outputs of commands: results of another command are never overwritten or mixed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from partialfc.errors import InputError
from partialfc.runtime.files import atomic_write

MARKER = ".partialfc"  # in an output folder: the command that created it


def claim_file(path: Path, *, overwrite: bool) -> None:
    """Raise InputError if a file exists and must not be overwritten."""
    if path.is_dir():
        raise InputError(f"{path}: expected the name of a file, got a folder")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists already; pass --overwrite to replace it")


@contextmanager
def claimed_folder(out: Path, *call: object, overwrite: bool) -> Iterator[None]:
    """Run a block that writes to a folder which is missing, empty or created by the same command.

    A folder in which nothing was written is restored.

    Args:
        out: Output folder.
        call: Command, inputs, and options that affect the output.
        overwrite: Whether the folder may belong to another command.

    Raises:
        InputError: If the folder contains anything else.
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
            f"{out}: expected a folder that is missing, empty, or created by the same command, got {others[0].name}"
            f"{' and others' if len(others) > 1 else ''}{by}; pass --overwrite to write there anyway"
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
    """Return a path relative to the output folder, so that folders can be moved together."""
    return os.path.relpath(path.resolve(), out.resolve())
