"""Writer of packs: train.rec, train.idx and property appear atomically, and an interrupted writer resumes.

Unfinished files are in OUT/.packing: `plan` (what is packed), `journal` (offset and class of each image, two
int64) and train.rec. The journal is never ahead of the records. After a crash, its images are therefore
complete, and everything after them is truncated.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from partialfc.data.dataset import MAX_EXACT_FLOAT32
from partialfc.data.recordio import Header, frame, map_file, pack, read_record
from partialfc.errors import InputError
from partialfc.runtime.files import atomic_write, file_fingerprint, file_lock, name_os_errors

EncodedSample = tuple[int, bytes]  # class and encoded image

UNFINISHED = ".packing"  # subfolder of a pack that is being written
_MAX_CLASSES_PER_IMAGE = 1000  # classes per image; with more, the class numbers are probably something else
_FLUSH_EVERY = 1024  # images between two flushes


def write_pack(
    folder: Path, samples: Iterable[EncodedSample], *, size: int, num_classes: int | None = None
) -> tuple[int, int]:
    """Write a pack from scratch; see `resume_pack`."""
    return resume_pack(folder, lambda done: samples, plan=None, size=size, num_classes=num_classes)


def resume_pack(
    folder: Path,
    samples: Callable[[int], Iterable[EncodedSample]],
    *,
    plan: str | None,
    size: int,
    num_classes: int | None = None,
) -> tuple[int, int]:
    """Write train.rec, train.idx and property into `folder`.

    The layout is that of the MS1M packs: images at keys 1..N; an identity record per class if images are
    sorted by class; a key-0 header [N + 1, N + 1 + num_classes] at the end. Every image also has its class in
    `id2`, since float32 is not exact from 2^24 on; `property` then declares this.

    Args:
        folder: Folder of the pack.
        samples: Called with the number of packed images; returns the remaining ones, `[size, size]` each.
        plan: Identifies the contents; a call with another plan, or without one, starts from scratch.
        num_classes: Number of classes; None: one more than the largest class.
        size: Height and width of the images.

    Returns:
        Numbers of classes with images, and of images.

    Raises:
        InputError: If there are no images, if almost all classes have none, or if another process is
            writing.
        OSError: If a file cannot be written.
    """
    temporary = folder / UNFINISHED
    temporary.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another process is packing into it"
    with file_lock(temporary / "lock", busy_message=busy), name_os_errors(temporary):
        plan = plan and f"{plan} {size} {num_classes}"
        if plan is None or _read_text(temporary / "plan") != plan:
            _start_over(temporary, plan or "")
        if not (temporary / "whole").exists():
            _append(temporary, samples)
            _finalize(temporary, size, num_classes)
        _publish(temporary, folder)
        classes, count = map(int, (temporary / "whole").read_text(encoding="ascii").split())
        (temporary / "plan").unlink()  # first, as in _start_over
        shutil.rmtree(temporary)
    return classes, count


def pack_version(path_rec: Path) -> str:
    """Return a string that changes with any change of a pack."""
    files = (path_rec, path_rec.with_suffix(".idx"), path_rec.with_name("property"))
    return hashlib.sha256(
        "\n".join(file_fingerprint(path) for path in files if path.exists()).encode()
    ).hexdigest()


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="ascii") if path.exists() else None


def _start_over(temporary: Path, plan: str) -> None:
    (temporary / "plan").unlink(missing_ok=True)  # first: what an interruption leaves here has no plan
    for path in temporary.iterdir():
        if path.name != "lock":
            path.unlink()
    (temporary / "plan").write_text(plan, encoding="ascii")


def _append(temporary: Path, samples: Callable[[int], Iterable[EncodedSample]]) -> None:
    """Append the remaining images."""
    done, end = _truncate_to_journal(temporary)
    written: list[tuple[int, int]] = []
    with (temporary / "train.rec").open("ab") as records, (temporary / "journal").open("ab") as journal:
        for key, (label, encoded) in enumerate(samples(done), done + 1):
            written.append((end, label))
            end += records.write(frame(pack(Header(float(label), key, label), encoded)))
            if len(written) == _FLUSH_EVERY:
                _flush(records, journal, written)
        _flush(records, journal, written)


def _flush(records: BinaryIO, journal: BinaryIO, written: list[tuple[int, int]]) -> None:
    for file in (records, journal):
        if file is journal:
            journal.write(np.array(written, "<i8").tobytes())
        file.flush()
        os.fsync(file.fileno())
    written.clear()


def _truncate_to_journal(temporary: Path) -> tuple[int, int]:
    """Truncate incomplete images; return the number of complete ones and the offset of their end."""
    journal = _read_journal(temporary)
    end = 0
    if len(journal):
        end = read_record(map_file(temporary / "train.rec"), int(journal[-1, 0]))[1]
    for name, length in (("journal", journal.nbytes), ("train.rec", end)):
        with (temporary / name).open("ab") as file:
            file.truncate(length)
    return len(journal), end


def _read_journal(temporary: Path) -> NDArray[np.int64]:
    """Return `[n, 2]`: offset and class."""
    path = temporary / "journal"
    words = np.fromfile(path, "<i8") if path.exists() else np.empty(0, "<i8")
    return words[: len(words) // 2 * 2].reshape(-1, 2)


def _finalize(temporary: Path, size: int, num_classes: int | None) -> None:
    """Append the trailing records to train.rec, and write the index and property."""
    offsets, labels = _read_journal(temporary).T
    if not len(labels):
        raise InputError(f"{temporary.parent}: no images to pack")
    if num_classes is None:
        num_classes = int(labels.max()) + 1
        if num_classes > _MAX_CLASSES_PER_IMAGE * len(labels):
            raise InputError(
                f"{temporary.parent}: class {num_classes - 1}, but {len(labels)} images; expected classes numbered from 0; "
                "--min-images 1 renumbers them"
            )
    with (temporary / "train.rec").open("ab") as records, (temporary / "train.idx").open("w") as index:
        index.writelines(f"{key}\t{offset}\n" for key, offset in enumerate(offsets.tolist(), 1))
        for key, ends in _trailing_records(labels, num_classes):
            index.write(f"{key}\t{records.tell()}\n")
            records.write(frame(pack(Header(np.array(ends), key), b"")))
    wide = ",id2" if num_classes > MAX_EXACT_FLOAT32 else ""
    (temporary / "property").write_text(f"{num_classes},{size},{size}{wide}\n", encoding="ascii")
    for name in ("train.rec", "train.idx", "property"):
        with (temporary / name).open("rb") as file:
            os.fsync(file.fileno())
    with atomic_write(temporary / "whole") as facts:
        facts.write_text(f"{len(np.unique(labels))} {len(labels)}", encoding="ascii")


def _trailing_records(labels: NDArray[np.int64], num_classes: int) -> Iterable[tuple[int, tuple[int, int]]]:
    """Yield key and labels of the records after the images: [first, end) of each class's keys, and the header."""
    after = len(labels) + 1
    if (labels[1:] >= labels[:-1]).all():
        ends = np.bincount(labels, minlength=num_classes).cumsum() + 1
        first = 1
        for key, end in enumerate(ends.tolist(), after):
            yield key, (first, end)
            first = end
    yield 0, (after, after + num_classes)


def _publish(temporary: Path, folder: Path) -> None:
    """Move the files into place; `property` is last."""
    if (temporary / "train.rec").exists():
        for name in ("property", "train.idx"):
            (folder / name).unlink(missing_ok=True)
    for name in ("train.rec", "train.idx", "property"):
        if (temporary / name).exists():
            (temporary / name).replace(folder / name)
