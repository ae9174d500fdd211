"""Faces to packs: train.rec with its index and property, and .bin sets of pairs."""

import math
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np

from partialfc.data import images
from partialfc.data.dataset import EXACT_FLOATS
from partialfc.data.progress import tracked
from partialfc.data.recordio import Header, RecordWriter
from partialfc.runtime.files import published

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_JPEG = b"\xff\xd8\xff"
_AHEAD = 256  # images read ahead of the one that is written

T = TypeVar("T")
R = TypeVar("R")


def write_pack(folder: Path, samples: Iterable[tuple[int, bytes]], *, num_classes: int, size: int) -> int:
    """Write train.rec, train.idx and property into `folder`, whole or not at all; returns the number of images.

    samples: class and encoded image [size, size], by ascending class. The layout is that of the MS1M packs:
    images at keys 1..N, identity records after them, a key-0 header [N + 1, N + 1 + num_classes] at the end.
    Classes that float32 does not hold are written to `id2` as well, which `property` then declares.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wide = num_classes > EXACT_FLOATS
    with ExitStack() as stack:
        # The last to be named here is the first in place: `property` is there when all is.
        properties = stack.enter_context(published(folder / "property"))
        index = stack.enter_context(published(folder / "train.idx"))
        records = stack.enter_context(published(folder / "train.rec"))
        with RecordWriter(records, index) as writer:
            counts = np.zeros(num_classes, np.int64)
            key = 0
            for label, encoded in samples:
                key += 1
                counts[label] += 1
                writer.write(key, Header(float(label), key, label if wide else 0), encoded)
            _write_identities(writer, counts)
        properties.write_text(f"{num_classes},{size},{size}{',id2' if wide else ''}\n", encoding="ascii")
    return key


def _write_identities(writer: RecordWriter, counts: np.ndarray) -> None:
    """A record [first, end) of the image keys of each class, and the header that names their range."""
    ends = counts.cumsum() + 1
    after = int(ends[-1])
    for label, (end, count) in enumerate(zip(ends.tolist(), counts.tolist(), strict=True)):
        writer.write(after + label, Header(np.array([end - count, end]), after + label), b"")
    writer.write(0, Header(np.array([after, after + len(counts)]), 0), b"")


def pack_folder(
    source: Path,
    folder: Path,
    *,
    size: int = 112,
    quality: int = 95,
    progress: bool = False,
) -> tuple[int, int]:
    """Pack `source/IDENTITY/IMAGE` into `folder`; returns the numbers of identities and of images.

    Class numbers follow the sorted names of the identity folders, and keys the sorted names of the images in
    them, whatever the machine. A JPEG of size x size keeps its bytes; anything else is resized and encoded at
    `quality`. progress: show a bar on stderr. ValueError names an identity without images, and an image that
    cannot be read.
    """
    identities = sorted(path for path in _listed(source) if path.is_dir())
    if not identities:
        raise ValueError(f"{source}: no folders in it; wanted one folder of images for each identity")
    files = [(label, path) for label, identity in enumerate(identities) for path in _image_files(identity)]
    shown = tracked(files, "packing", shown=progress)
    with ThreadPoolExecutor(
        len(os.sched_getaffinity(0))
    ) as pool:  # OpenCV decodes outside the interpreter lock
        samples = _in_order(pool, lambda file: (file[0], _encoded(file[1], size, quality)), shown)
        count = write_pack(folder, samples, num_classes=len(identities), size=size)
    return len(identities), count


def _listed(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _image_files(identity: Path) -> list[Path]:
    files = sorted(path for path in _listed(identity) if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{identity}: an identity without images; wanted {', '.join(sorted(SUFFIXES))}")
    return files


def _encoded(path: Path, size: int, quality: int) -> bytes:
    content = path.read_bytes()
    try:
        pixels = images.decode(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if content.startswith(_JPEG) and pixels.shape == (size, size, 3):
        return content
    return images.encode_jpeg(images.resized(pixels, size), quality)


def _in_order(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """function(item) for each item, in their order, computed by the pool and not far ahead of who asks."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def write_pairs(path: Path, encoded: list[bytes], same: list[bool]) -> None:
    """A .bin set: the pickle of (images, issame), images 2 i and 2 i + 1 being pair i."""
    assert len(encoded) == 2 * len(same)
    path.parent.mkdir(parents=True, exist_ok=True)
    with published(path) as draft:
        draft.write_bytes(pickle.dumps((encoded, same), protocol=4))


Shown = tuple[str, int]  # a person's name and the number of the image


def pack_pairs(listing: Path, folder: Path, path: Path) -> int:
    """Pack the pairs of a listing in the format of LFW's pairs.txt into a .bin; returns their number.

    listing: a first line of folds and pairs (or of pairs alone), then `NAME i j` for two images of one person
    and `NAME i OTHER j` for images of two; image i of NAME is folder/NAME/NAME_0001.jpg for i = 1. ValueError
    names a line that is neither, a number of pairs that disagrees, and an image that cannot be read.
    """
    lines = [line.split() for line in listing.read_text(encoding="utf-8").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or len(lines[0]) not in (1, 2) or not all(field.isdigit() for field in lines[0]):
        raise ValueError(f"{listing}, line 1: wanted the numbers of folds and of pairs, or of pairs alone")
    pairs = [_pair(f"{listing}, line {number}", fields) for number, fields in enumerate(lines[1:], 2)]
    wanted = 2 * math.prod(int(field) for field in lines[0])
    if len(pairs) != wanted:
        raise ValueError(
            f"{listing}: {len(pairs)} pairs, wanted {wanted} as line 1 says: as many same as different"
        )
    encoded = [_pair_image(folder, *shown) for pair in pairs for shown in pair]
    write_pairs(path, encoded, [first[0] == second[0] for first, second in pairs])
    return len(pairs)


def _pair(place: str, fields: list[str]) -> tuple[Shown, Shown]:
    match fields:
        case [name, first, second] if first.isdigit() and second.isdigit():
            return (name, int(first)), (name, int(second))
        case [name, first, other, second] if first.isdigit() and second.isdigit():
            return (name, int(first)), (other, int(second))
    raise ValueError(f"{place}: {' '.join(fields)[:60]!r}, wanted NAME i j, or NAME i OTHER j")


def _pair_image(folder: Path, name: str, number: int) -> bytes:
    path = folder / name / f"{name}_{number:04d}.jpg"
    content = path.read_bytes()
    try:
        images.decode(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return content
