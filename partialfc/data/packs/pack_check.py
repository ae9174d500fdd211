"""Verification of a pack, and recovery of the readable images of a damaged one."""

import itertools
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partialfc.data import images
from partialfc.data.dataset import (
    PackProperty,
    RecordDataset,
    find_record_file,
    label_from_header,
    read_property,
)
from partialfc.data.index import IntArray
from partialfc.data.packs.names import read_names, write_names
from partialfc.data.packs.pack_writer import EncodedSample, pack_version, resume_pack
from partialfc.data.recordio import MAGIC, CorruptRecordError, RecordFile, map_file, read_record, unpack
from partialfc.errors import InputError
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.progress import map_in_threads, progress_bar

_STRIDE = 1 << 20  # words of 4 bytes per block in the search for the next record


@dataclass
class PackCheck:
    """Result of checking a pack."""

    dialect: str | None = None  # None: it cannot be opened
    num_images: int = 0  # readable images
    problems: list[str] = field(default_factory=list)  # one line each


def check_pack(folder: Path, *, progress: bool = False) -> PackCheck:
    """Read the whole .rec, independent of its index, decode every image, and compare the index with the records.

    Damage that a JPEG decoder ignores, as most do for lost pixels, is not detected: the format has no
    checksums.

    Returns:
        Counts and problems.

    Raises:
        InputError: If `property` is invalid, or no image is readable.
        OSError: If there is no .rec.
    """
    findings, starts = _open_pack(folder), array("q")
    for _ in _iter_readable(folder, findings, progress, starts):
        pass
    if not findings.num_images:
        raise InputError(f"{find_record_file(folder)}: no readable image; {'; '.join(findings.problems[:1])}")
    if findings.dialect is not None:
        findings.problems += _index_problems(find_record_file(folder), np.sort(np.array(starts)))
    try:
        read_names(folder)
    except InputError as error:
        findings.problems.append(str(error))
    return findings


def repair_pack(folder: Path, target: Path, *, progress: bool = False) -> PackCheck:
    """Write all readable images, in the order of the .rec, to a new pack `out_folder` with its own index.

    Class numbers do not change, and the damaged pack is not modified. Rerun the same call to resume.

    Returns:
        Check of the damaged pack.

    Raises:
        InputError: If nothing is readable, or as in `check_pack`.
    """
    if folder.resolve() == target.resolve():
        raise InputError(f"{target}: expected a folder other than the pack")
    path, known = find_record_file(folder), read_property(folder / "property")
    findings = _open_pack(folder)

    def samples(done: int) -> Iterator[EncodedSample]:
        return itertools.islice(_iter_readable(folder, findings, progress), done, None)

    first = _first_image_size(_iter_readable(folder, PackCheck(), progress), path)
    resume_pack(
        target,
        samples,
        plan=pack_version(path),
        size=known.height if known else first,
        num_classes=known.num_classes if known else None,
    )
    write_names(target, read_names(folder))
    return findings


def _open_pack(folder: Path) -> PackCheck:
    try:
        return PackCheck(RecordDataset(folder).dialect)
    except (InputError, OSError) as error:
        return PackCheck(problems=[format_error(error)])


def _first_image_size(samples: Iterable[EncodedSample], path: Path) -> int:
    for _, encoded in samples:
        return images.decode(encoded).shape[0]
    raise InputError(f"{path}: no readable image")


def _index_problems(path: Path, starts: IntArray) -> Iterator[str]:
    """Yield how the index differs from the records that start at these bytes `[n]`."""
    records, index = RecordFile(path), path.with_suffix(".idx")
    keys, offsets = np.asarray(records.keys), np.asarray(records.offsets)
    wrong = np.flatnonzero(~np.isin(offsets, starts))
    if len(wrong):
        yield (
            f"{index}: {len(wrong)} of {len(keys)} keys point where no record starts, such as key {keys[wrong[0]]} "
            f"to byte {offsets[wrong[0]]}"
        )
    order = np.argsort(offsets, kind="stable")
    twice = np.flatnonzero(np.diff(offsets[order]) == 0)
    if len(twice):
        first, second = keys[order[twice[0]]], keys[order[twice[0] + 1]]
        yield f"{index}: {len(twice)} records have several keys, such as {first} and {second}"
    missing = starts[~np.isin(starts, offsets)]
    if len(missing):
        yield (
            f"{index}: {len(missing)} of {len(starts)} records have no key, so that training skips them, such as that "
            f"at byte {missing[0]}"
        )


def _iter_readable(
    folder: Path, result: PackCheck, progress: bool, starts: "array[int] | None" = None
) -> Iterator[EncodedSample]:
    """Yield the readable images; problems are added to `result`, and the first byte of each record to `starts`."""
    path, known = find_record_file(folder), read_property(folder / "property")

    def looked_at(found: tuple[int, bytes | CorruptRecordError]) -> EncodedSample | str | None:
        """Return an image with its class, or its problem; None for other records."""
        offset, content = found
        if starts is not None:
            starts.append(offset)
        if isinstance(content, CorruptRecordError):
            return f"{path}: {content}"
        try:
            return _parse_image(content, known)
        except InputError as error:
            return f"{path}: record at byte {offset}: {error}"

    for found in map_in_threads(
        looked_at, progress_bar(_iter_records(map_file(path)), "reading", enabled=progress)
    ):
        if isinstance(found, str):
            result.problems.append(found)
        elif found is not None:
            result.num_images += 1
            yield found


def _parse_image(content: bytes, known: PackProperty | None) -> EncodedSample | None:
    """Return an image with its class; None for the pack header or an identity record.

    Raises:
        InputError: If the record is damaged.
    """
    header, payload = unpack(content)
    if not len(payload) and header.flag:
        return None
    label = label_from_header(header, in_id2=known is not None and known.labels_in_id2)
    if not 0 <= label < (known.num_classes if known else 1 << 31):
        raise InputError(f"label {label}, which is not a class of the pack")
    images.decode(payload)
    return label, bytes(payload)


def _iter_records(buffer: memoryview) -> Iterator[tuple[int, bytes | CorruptRecordError]]:
    """Yield offset and contents of every record; for damage an error, followed by the next valid record."""
    words = np.frombuffer(buffer, "<u4", len(buffer) // 4)
    offset = 0
    while offset < len(buffer):
        try:
            record, end = read_record(buffer, offset)
            if _contains_magic(words, offset, end, len(record)):
                raise CorruptRecordError(
                    f"record at byte {offset}: contains the start of another record; its length is wrong"
                )
            yield offset, bytes(record)
        except CorruptRecordError as error:
            yield offset, error
            end = _next_record(buffer, words, offset + 4)
        offset = end


def _contains_magic(words: NDArray[np.uint32], offset: int, end: int, length: int) -> bool:
    """Return True if the magic number occurs in a one-part record, which a writer would have split."""
    return end - offset < length + 12 and bool((words[offset // 4 + 1 : end // 4] == MAGIC).any())


def _next_record(buffer: memoryview, words: NDArray[np.uint32], offset: int) -> int:
    """Return the offset of the next readable record, or the end of the file."""
    for start in range(offset // 4, len(words), _STRIDE):
        for place in np.flatnonzero(words[start : start + _STRIDE] == MAGIC).tolist():
            try:
                read_record(buffer, 4 * (start + place))
                return 4 * (start + place)
            except CorruptRecordError:
                continue
    return len(buffer)
