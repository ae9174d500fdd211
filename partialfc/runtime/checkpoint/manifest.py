"""Manifest of a checkpoint (run.json): its run, its tensors, and the digests of all files."""

import math
from pathlib import Path
from typing import Any

import msgspec
import torch
import xxhash
from msgspec import Struct

from partialfc.errors import InputError
from partialfc.input_files import read_file
from partialfc.runtime.files import fsync_path

MANIFEST = "run.json"
_FORMAT = 3  # version of the checkpoint format
DTYPES = {  # by their names in safetensors
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class FileDigest(Struct, frozen=True):
    """Size and digest of a file of tensors."""

    bytes: int
    digest: str  # xxh3-128 of the file


class TensorEntry(Struct, frozen=True):
    """Entry of a saved tensor: its dtype, shape and shards."""

    dtype: str
    shape: list[int]
    pieces: dict[str, tuple[int, int]]  # file name: first row in the file, and one past the last row


class Manifest(Struct, frozen=True):
    """Everything in a checkpoint except the tensors."""

    number: int  # number of this save within its folder; the latest save has the largest
    step: int
    seconds: float  # duration of the run so far
    score: float | None  # score that `best` is selected by; None if the step was not evaluated
    about: dict[str, Any]  # description of the run, given by the caller
    files: dict[str, FileDigest]
    tensors: dict[str, TensorEntry]


class _SignedManifest(Struct, frozen=True):
    format: int
    digest: str  # of `content`, as it is written
    content: msgspec.Raw


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write run.json and wait until it is on disk."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    digest = xxhash.xxh3_128_hexdigest(content)
    path = folder / MANIFEST
    path.write_bytes(msgspec.json.encode(_SignedManifest(_FORMAT, digest, msgspec.Raw(content))))
    fsync_path(path)


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's run.json.

    Returns:
        Verified manifest.

    Raises:
        InputError: If it is missing or was modified.
        OSError: If it cannot be read.
    """
    path = folder / MANIFEST
    try:
        written = read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder}: no checkpoint; expected a folder step_* with {MANIFEST} in it, or a run's"
        ) from None
    try:
        sealed = msgspec.json.decode(written, type=_SignedManifest)
    except msgspec.ValidationError:
        raise InputError(
            f"{path}: written by an earlier version, without digests; resume the run with that version"
        ) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected the description of a checkpoint; the file is damaged: {error}"
        ) from None
    if sealed.format != _FORMAT:
        raise InputError(f"{path}: format {sealed.format}, expected {_FORMAT}; another version wrote it")
    if (
        msgspec.json.encode(sealed) != written
        or xxhash.xxh3_128_hexdigest(bytes(sealed.content)) != sealed.digest
    ):
        raise InputError(f"{path}: was modified after it was written")
    try:
        manifest = msgspec.json.decode(sealed.content, type=Manifest)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: of another version: {error}") from None
    for name, stored in manifest.tensors.items():
        _check_entry(path, name, stored, manifest.files)
    return manifest


def _check_entry(path: Path, name: str, stored: TensorEntry, files: dict[str, FileDigest]) -> None:
    """Raise InputError if a tensor is in no file, or larger than its files, before memory is allocated."""
    if stored.dtype not in DTYPES:
        raise InputError(f"{path}: {name}: expected one of {', '.join(DTYPES)}, got {stored.dtype!r:.60}")
    if wrong := [it for it in stored.pieces.values() if not 0 <= it[0] <= it[1]]:
        raise InputError(f"{path}: {name}: expected first and last row, got {wrong[0]}")
    if others := [file for file in stored.pieces if file not in files or Path(file).name != file]:
        raise InputError(f"{path}: {name}: expected files of the checkpoint, got {others[0]!r:.60}")
    bytes_there = sum(files[file].bytes for file in stored.pieces)
    if min(stored.shape, default=0) < 0 or math.prod(stored.shape) > bytes_there:
        raise InputError(
            f"{path}: {name}: expected a tensor of at most {bytes_there} bytes, got shape {stored.shape}"
        )
