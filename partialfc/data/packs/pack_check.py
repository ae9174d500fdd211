"""Whether a pack is whole, and what of a damaged one can be read."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partialfc.data import images
from partialfc.data.dataset import Property, RecordDataset, class_of, read_property, record_file
from partialfc.data.packs.names import read_names, write_names
from partialfc.data.packs.pack_writer import Sample, plan_of, resume_pack
from partialfc.data.recordio import MAGIC, CorruptRecord, mapped, read_record, unpack
from partialfc.errors import InputError
from partialfc.runtime.exit_codes import one_line
from partialfc.runtime.progress import in_order, tracked

_STRIDE = 1 << 20  # words of 4 bytes in which the next record is looked for at a time


@dataclass
class Findings:
    """What a check of a pack has found."""

    dialect: str | None = None  # None: it cannot be opened
    num_images: int = 0  # that can be read
    problems: list[str] = field(default_factory=list)  # a line each


def check(folder: Path, *, progress: bool = False) -> Findings:
    """Reads the whole .rec, whatever its index says, and decodes every image. Damage that a JPEG decoder passes over,
    as most do with pixels that are lost, is not noticed: the format has no checksums. InputError or OSError where
    there is no .rec, or its `property` is none, or no image can be read.
    """
    findings = _opened(folder)
    for _ in _readable(folder, findings, progress):
        pass
    if not findings.num_images:
        raise InputError(
            f"{record_file(folder)}: no image that can be read; {'; '.join(findings.problems[:1])}"
        )
    return findings


def repair(folder: Path, target: Path, *, progress: bool = False) -> Findings:
    """Write a pack of all images that can be read, in the order of the .rec, to `target`, with an index of its own;
    returns what is wrong with the damaged one, which stays as it is. Classes stay. May be repeated where it was
    interrupted. InputError where nothing can be read, else as check.
    """
    if folder.resolve() == target.resolve():
        raise InputError(f"{target}: wanted another folder than that of the pack")
    path, known = record_file(folder), read_property(folder / "property")
    findings = _opened(folder)

    def samples(done: int) -> Iterator[Sample]:
        return itertools.islice(_readable(folder, findings, progress), done, None)

    first = _first_size(_readable(folder, Findings(), progress), path)
    resume_pack(
        target,
        samples,
        plan=plan_of(path),
        size=known.height if known else first,
        num_classes=known.num_classes if known else None,
    )
    write_names(target, read_names(folder))
    return findings


def _opened(folder: Path) -> Findings:
    try:
        return Findings(RecordDataset(folder).dialect)
    except (InputError, OSError) as error:
        return Findings(problems=[one_line(error)])


def _first_size(samples: Iterable[Sample], path: Path) -> int:
    for _, encoded in samples:
        return images.decode(encoded).shape[0]
    raise InputError(f"{path}: no image that can be read")


def _readable(folder: Path, findings: Findings, progress: bool) -> Iterator[Sample]:
    """The images that can be read; what cannot goes to `findings`."""
    path, known = record_file(folder), read_property(folder / "property")

    def looked_at(found: tuple[int, bytes | CorruptRecord]) -> Sample | str | None:
        """An image with its class, or what is wrong with it; None: something else."""
        offset, content = found
        if isinstance(content, CorruptRecord):
            return f"{path}: {content}"
        try:
            return _image(content, known)
        except InputError as error:
            return f"{path}: record at byte {offset}: {error}"

    for found in in_order(looked_at, tracked(_records(mapped(path)), "reading", shown=progress)):
        if isinstance(found, str):
            findings.problems.append(found)
        elif found is not None:
            findings.num_images += 1
            yield found


def _image(content: bytes, known: Property | None) -> Sample | None:
    """None for the pack's header, or an identity. InputError says what is wrong."""
    header, payload = unpack(content)
    if not len(payload) and header.flag:
        return None
    label = class_of(header, in_id2=known is not None and known.labels_in_id2)
    if not 0 <= label < (known.num_classes if known else 1 << 31):
        raise InputError(f"label {label}, which is none of the classes")
    images.decode(payload)
    return label, bytes(payload)


def _records(buffer: memoryview) -> Iterator[tuple[int, bytes | CorruptRecord]]:
    """Offset and content of every record; where none is, an error, and on with the next that is whole."""
    words = np.frombuffer(buffer, "<u4", len(buffer) // 4)
    offset = 0
    while offset < len(buffer):
        try:
            record, end = read_record(buffer, offset)
            if _swallows(words, offset, end, len(record)):
                raise CorruptRecord(
                    f"record at byte {offset}: holds the start of another; its length is wrong"
                )
            yield offset, bytes(record)
        except CorruptRecord as error:
            yield offset, error
            end = _next_whole(buffer, words, offset + 4)
        offset = end


def _swallows(words: NDArray[np.uint32], offset: int, end: int, length: int) -> bool:
    """Whether the magic stands in a record of one part, where a writer would have split it."""
    return end - offset < length + 12 and bool((words[offset // 4 + 1 : end // 4] == MAGIC).any())


def _next_whole(buffer: memoryview, words: NDArray[np.uint32], offset: int) -> int:
    """Where the next record starts that can be read; the end of the file where there is none."""
    for start in range(offset // 4, len(words), _STRIDE):
        for place in np.flatnonzero(words[start : start + _STRIDE] == MAGIC).tolist():
            try:
                read_record(buffer, 4 * (start + place))
                return 4 * (start + place)
            except CorruptRecord:
                continue
    return len(buffer)
