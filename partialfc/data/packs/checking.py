"""Whether a pack is whole, what of a damaged one can be read, and whether two packs share identities."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partialfc.data import images
from partialfc.data.dataset import RecordDataset, class_of, read_property, record_file
from partialfc.data.packs.work import in_order, tracked
from partialfc.data.packs.writing import Sample, resume_pack
from partialfc.data.recordio import MAGIC, CorruptRecord, mapped, read_record, unpack
from partialfc.runtime.errors import one_line

_STRIDE = 1 << 20  # words of 4 bytes in which the next record is looked for at a time


@dataclass
class Findings:
    """Of a pack."""

    dialect: str | None = None  # None: it cannot be opened
    num_images: int = 0  # that can be read
    problems: list[str] = field(default_factory=list)  # a line each


@dataclass(frozen=True)
class _Read:
    """A record that was looked at: an image with its class, or what is wrong with it; neither: something else."""

    sample: Sample | None = None
    problem: str | None = None


def check(folder: Path, *, progress: bool = False) -> Findings:
    """Reads the whole .rec, whatever its index says, and decodes every image. Damage that a JPEG decoder passes over,
    as most do with pixels that are lost, is not noticed: the format has no checksums.
    """
    findings = Findings()
    try:
        findings.dialect = RecordDataset(folder).dialect
    except (ValueError, OSError) as error:
        findings.problems.append(one_line(error))
    for read in _all(folder, progress):
        findings.num_images += read.sample is not None
        if read.problem is not None:
            findings.problems.append(read.problem)
    return findings


def repair(folder: Path, target: Path, *, progress: bool = False) -> tuple[int, int]:
    """Write a pack of all images that can be read, in the order of the .rec, to `target`, with an index of its own;
    returns the numbers of classes and of images. Classes stay. The damaged pack stays as it is.
    """
    if folder.resolve() == target.resolve():
        raise ValueError(f"{target}: wanted another folder than that of the pack")
    path = record_file(folder)
    facts = path.stat()
    known = read_property(folder / "property")
    plan = hashlib.sha256(repr((str(path.resolve()), facts.st_size, facts.st_mtime_ns)).encode()).hexdigest()

    def samples(done: int) -> Iterator[Sample]:
        readable = (read.sample for read in _all(folder, progress) if read.sample is not None)
        for place, sample in enumerate(readable):
            if place >= done:
                yield sample

    size = known.height if known else _first_size(samples(0), path)
    return resume_pack(
        target, samples, plan=plan, size=size, num_classes=known.num_classes if known else None
    )


def _first_size(samples: Iterable[Sample], path: Path) -> int:
    for _, encoded in samples:
        return images.decode(encoded).shape[0]
    raise ValueError(f"{path}: no image that can be read")


def _all(folder: Path, progress: bool) -> Iterator[_Read]:
    path = record_file(folder)
    known = read_property(folder / "property")

    def looked_at(found: tuple[int, bytes | CorruptRecord]) -> _Read:
        offset, content = found
        if isinstance(content, CorruptRecord):
            return _Read(problem=f"{path}: {content}")
        try:
            header, payload = unpack(content)
            if not len(payload) and header.flag:  # the pack's header, or an identity
                return _Read()
            label = class_of(header, in_id2=known is not None and known.labels_in_id2)
            if not 0 <= label < (known.num_classes if known else 1 << 31):
                raise ValueError(f"label {label}, which is none of the classes")
            images.decode(payload)
        except ValueError as error:
            return _Read(problem=f"{path}: record at byte {offset}: {error}")
        return _Read(sample=(label, bytes(payload)))

    return in_order(looked_at, tracked(_records(mapped(path)), "reading", shown=progress))


def _records(buffer: memoryview) -> Iterator[tuple[int, bytes | CorruptRecord]]:
    """Offset and content of every record; where none is, an error, and on with the next that is whole."""
    offset = 0
    while offset < len(buffer):
        try:
            record, end = read_record(buffer, offset)
            yield offset, bytes(record)
        except CorruptRecord as error:
            yield offset, error
            end = _next_whole(buffer, offset + 4)
        offset = end


def _next_whole(buffer: memoryview, offset: int) -> int:
    """Where the next record starts that can be read; the end of the file where there is none."""
    words = memoryview(buffer[: len(buffer) // 4 * 4]).cast("I")
    for start in range(offset // 4, len(words), _STRIDE):
        found = np.flatnonzero(np.asarray(words[start : start + _STRIDE]) == MAGIC)
        for place in found.tolist():
            try:
                read_record(buffer, 4 * (start + place))
                return 4 * (start + place)
            except CorruptRecord:
                continue
    return len(buffer)


def shared(first: Path, second: Path, *, progress: bool = False) -> Counter[tuple[int, int]]:
    """Pairs of classes, of the `first` pack and the `second`, that have the same image, byte for byte: how many."""
    hashes, labels = zip(*(_hashed(pack, progress) for pack in (first, second)), strict=True)
    _, places, others = np.intersect1d(*hashes, return_indices=True)
    return Counter(zip(labels[0][places].tolist(), labels[1][others].tolist(), strict=True))


def _hashed(pack: Path, progress: bool) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A hash of each image, and its class."""
    dataset = RecordDataset(pack)
    hashes, labels = np.empty(len(dataset), np.uint64), np.empty(len(dataset), np.int64)
    for sample in tracked(range(len(dataset)), f"reading {pack.name}", shown=progress):
        digest = hashlib.blake2b(dataset.encoded(sample), digest_size=8).digest()
        hashes[sample], labels[sample] = int.from_bytes(digest), dataset.label(sample)
    return hashes, labels
