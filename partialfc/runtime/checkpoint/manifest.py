"""run.json: what a checkpoint holds, of which run it is, and the digests by which all of it is checked."""

import math
from pathlib import Path
from typing import Any

import msgspec
import xxhash
from msgspec import Struct

from partialfc.errors import InputError
from partialfc.runtime.files import fsync_path

MANIFEST = "run.json"
_FORMAT = 3  # of the whole folder


class FileDigest(Struct, frozen=True):
    """A file of tensors."""

    bytes: int
    digest: str  # xxh3-128 of all of them


class TensorEntry(Struct, frozen=True):
    """A tensor, and where it lies."""

    dtype: str
    shape: list[int]
    pieces: dict[str, tuple[int, int]]  # by file: the first row there, and the one after the last


class Manifest(Struct, frozen=True):
    """All but the tensors."""

    number: int  # of this save among those of its folder: the newest has the largest
    step: int
    seconds: float  # that the run took so far
    score: float | None  # what `best` goes by; None: was not evaluated
    about: dict[str, Any]  # the run, as the caller describes it
    files: dict[str, FileDigest]
    tensors: dict[str, TensorEntry]


class _SignedManifest(Struct, frozen=True):
    format: int
    digest: str  # of `content`, as it is written
    content: msgspec.Raw


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write run.json, which is on the disk when this returns."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    digest = xxhash.xxh3_128_hexdigest(content)
    path = folder / MANIFEST
    path.write_bytes(msgspec.json.encode(_SignedManifest(_FORMAT, digest, msgspec.Raw(content))))
    fsync_path(path)


def read_manifest(folder: Path) -> Manifest:
    """A checkpoint's run.json. InputError where there is none, and where it is not what was written; OSError where it
    cannot be read.
    """
    path = folder / MANIFEST
    try:
        written = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder}: no checkpoint; wanted a folder step_* with {MANIFEST} in it, or a run's"
        ) from None
    try:
        sealed = msgspec.json.decode(written, type=_SignedManifest)
    except msgspec.ValidationError:
        raise InputError(f"{path}: of an earlier version, which wrote no digests") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}") from None
    if sealed.format != _FORMAT or msgspec.json.encode(sealed) != written:
        raise InputError(f"{path}: format {sealed.format}, wanted {_FORMAT}, as it was written")
    if xxhash.xxh3_128_hexdigest(bytes(sealed.content)) != sealed.digest:
        raise InputError(f"{path}: not what was written")
    try:
        manifest = msgspec.json.decode(sealed.content, type=Manifest)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: of another version: {error}") from None
    for name, stored in manifest.tensors.items():
        _check_size(path, name, stored, manifest.files)
    return manifest


def _check_size(path: Path, name: str, stored: TensorEntry, files: dict[str, FileDigest]) -> None:
    """Raise InputError if a tensor is in no file of the checkpoint, or larger than those, before it is allocated."""
    if others := [file for file in stored.pieces if file not in files or Path(file).name != file]:
        raise InputError(f"{path}: {name}: expected files of the checkpoint, got {others[0]!r:.60}")
    bytes_there = sum(files[file].bytes for file in stored.pieces)
    if min(stored.shape, default=0) < 0 or math.prod(stored.shape) > bytes_there:
        raise InputError(
            f"{path}: {name}: expected a tensor of at most {bytes_there} bytes, got shape {stored.shape}"
        )
