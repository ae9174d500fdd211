"""Tensors in safetensors files, one file per rank: written as a stream with a digest, read by rows."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Protocol

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from partialfc.errors import InputError
from partialfc.input_files import require_file
from partialfc.runtime.checkpoint.direct_file import DirectFile
from partialfc.runtime.checkpoint.manifest import DTYPES, FileDigest, TensorEntry

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CHUNK = 8 << 20  # bytes per read or write


class StreamedRows(Protocol):
    """Tensor `[n, ...]` that is read in order, in chunks, while its owner may change it."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows."""

    @property
    def shape(self) -> torch.Size:
        """Shape `[n, ...]`."""

    def read(self, start: int, stop: int) -> Tensor:
        """Return contiguous host rows, with the values at construction."""

    def close(self) -> None:
        """Release the tensor."""


TensorSource = Tensor | StreamedRows
ThrottleFn = Callable[[], None]  # called after each chunk; may wait


def dtype_name(tensor: TensorSource) -> str:
    """Return the name of a tensor's dtype in the safetensors format."""
    return _NAMES[tensor.dtype]


def write_shard(path: Path, tensors: Mapping[str, TensorSource], throttle: ThrottleFn) -> FileDigest:
    """Write contiguous host tensors to a new file, and wait until it is on disk."""
    # Aligned, so that the file can be mapped.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    digest, size = xxhash.xxh3_128(), 0
    with closing(DirectFile(path)) as file:
        for chunk in _iter_file_bytes(names, tensors):
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
            throttle()
        file.sync()
    return FileDigest(size, digest.hexdigest())


def compute_digest(path: Path) -> FileDigest:
    """Return the digest of a file. It equals the result of `write_shard` if the file is unchanged."""
    digest, size, buffer = xxhash.xxh3_128(), 0, bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            digest.update(memoryview(buffer)[:read])
            size += read
    return FileDigest(size, digest.hexdigest())


def read_rows_into(target: Tensor, name: str, first: int, entry: TensorEntry, folder: Path) -> None:
    """Copy rows of a stored tensor into `target`, starting at row `first`; a scalar is copied unchanged.

    Raises:
        InputError: If the files do not contain these rows.
    """
    if target.dim() == 0:
        for file in entry.pieces:
            target.copy_(_read_tensor(folder / file, name, None))
        return
    last, filled = first + len(target), 0
    for file, (begin, end) in entry.pieces.items():
        for start, stop in _iter_ranges(max(first, begin), min(last, end), target):
            part = _read_tensor(folder / file, name, slice(start - begin, stop - begin))
            target[start - first : stop - first].copy_(part)
            filled += stop - start
    if filled != len(target):
        raise InputError(
            f"{folder}: {name}: expected the rows {first} to {last}, found {filled} of them in its files"
        )


def empty_like_entry(entry: TensorEntry, rows: int | None = None) -> Tensor:
    """Return an empty host tensor for all rows of a stored tensor, or for the given number of rows."""
    shape = entry.shape if rows is None else [rows, *entry.shape[1:]]
    return torch.empty(shape, dtype=DTYPES[entry.dtype])


def _iter_ranges(start: int, stop: int, rows: Tensor) -> Iterator[tuple[int, int]]:
    """Yield ranges of some megabytes."""
    step = max(1, _CHUNK // max(1, rows[:1].nbytes))
    for begin in range(start, stop, step):
        yield begin, min(stop, begin + step)


def _read_tensor(path: Path, name: str, rows: slice | None) -> Tensor:
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
    except SafetensorError as error:
        raise InputError(
            f"{path}: expected safetensors of a checkpoint; the file is damaged: {error}"
        ) from None
    return tensor


def _iter_file_bytes(names: list[str], tensors: Mapping[str, TensorSource]) -> Iterator[memoryview]:
    """Yield the bytes of the file: length of the header, header, tensors."""
    header: dict[str, object] = {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.shape.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": dtype_name(tensor),
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in names:
        yield from _iter_tensor_bytes(tensors[name])


def _iter_tensor_bytes(source: TensorSource) -> Iterator[memoryview]:
    if isinstance(source, Tensor):
        content = _as_bytes(source)
        for start in range(0, len(content), _CHUNK):
            yield content[start : start + _CHUNK]
        return
    count = source.shape[0]
    step = max(1, _CHUNK // max(1, source.shape[1:].numel() * source.dtype.itemsize))
    for start in range(0, count, step):
        yield _as_bytes(source.read(start, min(count, start + step)))


def _as_bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
