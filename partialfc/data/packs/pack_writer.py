"""A pack as it grows: train.rec, train.idx and property, whole or not at all, and gone on with where it was cut off.

While it grows everything is in OUT/.packing: `plan` (what is packed), `journal` (offset and class of each image,
two int64) and train.rec. The journal is never ahead of the records, so whatever was killed when, its images are
there, and what follows them is cut off.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from partialfc.data.dataset import MAX_EXACT_FLOAT32
from partialfc.data.recordio import Header, frame, map_file, pack, read_record
from partialfc.errors import InputError
from partialfc.runtime.files import atomic_write, file_fingerprint, file_lock

EncodedSample = tuple[int, bytes]  # class and encoded image

_MAX_CLASSES_PER_IMAGE = 1000  # classes for each image; with more, their numbers are something else
_FLUSH_EVERY = 1024  # images between two writes to the disk


def write_pack(
    folder: Path, samples: Iterable[EncodedSample], *, size: int, num_classes: int | None = None
) -> tuple[int, int]:
    """As resume_pack, from the beginning."""
    return resume_pack(folder, lambda done: samples, plan=None, size=size, num_classes=num_classes)


def resume_pack(
    folder: Path,
    samples: Callable[[int], Iterable[EncodedSample]],
    *,
    plan: str | None,
    size: int,
    num_classes: int | None = None,
) -> tuple[int, int]:
    """Write train.rec, train.idx and property into `folder`; returns the numbers of classes that have images, and of images.

    samples: given how many images are there already, the others, [size, size] each. plan: names what is packed; a
    call with another one, or none, starts from the beginning. num_classes: unset, one more than the largest class.
    The layout is that of the MS1M packs: images at keys 1..N, after them an identity record for each class, where
    the images came by ascending class (else there are none), and at the end a key-0 header
    [N + 1, N + 1 + num_classes]. Every image has its class in `id2`, too: float32 does not hold those from 2^24 on,
    and then `property` says that they stand there. InputError where there is no image, where nearly all classes would
    have none, or another process is at work; OSError where it cannot be written.
    """
    temporary = folder / ".packing"
    temporary.mkdir(parents=True, exist_ok=True)
    with file_lock(temporary / "lock", busy_message=f"{folder}: another process is packing into it"):
        plan = plan and f"{plan} {size} {num_classes}"
        if plan is None or _read_text(temporary / "plan") != plan:
            _start_over(temporary, plan or "")
        if not (temporary / "whole").exists():
            with _name_os_errors(temporary):
                _append(temporary, samples)
                _finalize(temporary, size, num_classes)
        _publish(temporary, folder)
        classes, count = map(int, (temporary / "whole").read_text(encoding="ascii").split())
        (temporary / "plan").unlink()  # first, as in _start_over
        shutil.rmtree(temporary)
    return classes, count


def pack_version(path_rec: Path) -> str:
    """Another one after any change of a pack."""
    files = (path_rec, path_rec.with_suffix(".idx"), path_rec.with_name("property"))
    return hashlib.sha256(
        "\n".join(file_fingerprint(path) for path in files if path.exists()).encode()
    ).hexdigest()


@contextmanager
def _name_os_errors(temporary: Path) -> Iterator[None]:
    """A full disk is an OSError without a place; here it gets one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(temporary)
        raise


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="ascii") if path.exists() else None


def _start_over(temporary: Path, plan: str) -> None:
    (temporary / "plan").unlink(missing_ok=True)  # first: what an interruption leaves here has none
    for path in temporary.iterdir():
        if path.name != "lock":
            path.unlink()
    (temporary / "plan").write_text(plan, encoding="ascii")


def _append(temporary: Path, samples: Callable[[int], Iterable[EncodedSample]]) -> None:
    """The images that are not there yet."""
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
    """Removes what is not a whole image with its entry; returns how many are left, and where they end."""
    journal = _read_journal(temporary)
    end = 0
    if len(journal):
        end = read_record(map_file(temporary / "train.rec"), int(journal[-1, 0]))[1]
    for name, length in (("journal", journal.nbytes), ("train.rec", end)):
        with (temporary / name).open("ab") as file:
            file.truncate(length)
    return len(journal), end


def _read_journal(temporary: Path) -> NDArray[np.int64]:
    """[n, 2]: offset and class."""
    path = temporary / "journal"
    words = np.fromfile(path, "<i8") if path.exists() else np.empty(0, "<i8")
    return words[: len(words) // 2 * 2].reshape(-1, 2)


def _finalize(temporary: Path, size: int, num_classes: int | None) -> None:
    """What follows the images in train.rec; the index; property."""
    offsets, labels = _read_journal(temporary).T
    if not len(labels):
        raise InputError(f"{temporary.parent}: no image to pack")
    if num_classes is None:
        num_classes = int(labels.max()) + 1
        if num_classes > _MAX_CLASSES_PER_IMAGE * len(labels):
            raise InputError(
                f"{temporary.parent}: class {num_classes - 1}, but {len(labels)} images; wanted classes numbered from 0, "
                f"as --min-images 1 does"
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
    """Key and labels of each record that follows the images: [first, end) of each class's keys, and the header."""
    after = len(labels) + 1
    if (labels[1:] >= labels[:-1]).all():
        ends = np.bincount(labels, minlength=num_classes).cumsum() + 1
        first = 1
        for key, end in enumerate(ends.tolist(), after):
            yield key, (first, end)
            first = end
    yield 0, (after, after + num_classes)


def _publish(temporary: Path, folder: Path) -> None:
    """Instead of what stood there; `property` is there when all is."""
    if (temporary / "train.rec").exists():
        for name in ("property", "train.idx"):
            (folder / name).unlink(missing_ok=True)
    for name in ("train.rec", "train.idx", "property"):
        if (temporary / name).exists():
            (temporary / name).replace(folder / name)
