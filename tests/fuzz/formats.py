"""What reads bytes that others wrote: for each format good examples, and what is done with a file of it.

A file may be refused, in a line that names it. Anything else is a defect: another error, a crash, a hang, memory beyond a
small multiple of the file, or anything run.
"""

import pickle
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from helpers.faces import face, write_pack

from partialfc.config import load_config
from partialfc.data import RecordDataset
from partialfc.data.packs import sources
from partialfc.data.recordio import Header, RecordFile, RecordWriter
from partialfc.errors import InputError
from partialfc.evaluation.pairs import load_pairs
from partialfc.runtime.error_messages import format_error

RECIPES = Path(__file__).parents[2] / "recipes"
SHOWN = 8  # records that are read of a file


class Format(NamedTuple):
    name: str  # of the file
    examples: Callable[[], list[bytes]]
    surroundings: Callable[[Path], None]  # what stands beside it
    read: Callable[[Path], None]


def nothing(folder: Path) -> None:
    pass


def small_pack(folder: Path) -> None:
    write_pack(folder, 2, 2, size=8)


def of_a_pack(*names: str) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        small_pack(Path(folder))
        return [Path(folder, name).read_bytes() for name in names]


def records() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        with RecordWriter(Path(folder, "a.rec"), Path(folder, "a.idx")) as writer:
            for key, payload in enumerate((b"", b"abc", b"\x0a\x23\xd7\xce" * 2, face(0, 0, 8))):
                writer.write(key, Header(np.array([1.0, 2.0]) if key % 2 else 3.0, key), payload)
        return [*of_a_pack("train.rec"), Path(folder, "a.rec").read_bytes()]


def read_records(path: Path) -> None:
    """Without an index, and as a pack."""
    file = RecordFile(path)
    for key in file.keys[:SHOWN]:
        file[int(key)]
    read_pack(path)


def read_pack(path: Path) -> None:
    dataset = RecordDataset(path.parent)
    dataset.prefetch_hint(np.arange(min(SHOWN, len(dataset))))
    for sample in range(min(SHOWN, len(dataset))):
        dataset[sample]


def read_index(path: Path) -> None:
    file = RecordFile(path.with_suffix(".rec"))
    for key in file.keys[:SHOWN]:
        file[int(key)]
    read_pack(path)


def read_listing(path: Path) -> None:
    source = sources.open_source(path, allow_empty=False)
    assert len(list(source.items())) == len(list(source.labels())) == source.num_images()


def pairs() -> list[bytes]:
    images, same = [bytes([65 + place]) * 3 for place in range(20)], [True, False] * 5
    arrays = [np.frombuffer(image, np.uint8) for image in images]
    kinds = [(images, same), (arrays, same), (images, np.array(same))]
    return [pickle.dumps(kind, protocol) for kind in kinds for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


FORMATS = {
    "rec": Format("train.rec", records, nothing, read_records),
    "idx": Format("train.idx", lambda: [*of_a_pack("train.idx"), b"0\t0\n1\t40\n"], small_pack, read_index),
    "property": Format("property", lambda: [b"2,8,8", b"20000000,8,8,id2\n"], small_pack, read_pack),
    "lst": Format(
        "faces.lst",
        lambda: [b"0\t1.000000\ta/b.jpg\n1\t0\tc.png\n", b"1\ta/b.jpg\t3\n1\tb.jpg\t4\t1\t2\t3\t4\n"],
        nothing,
        read_listing,
    ),
    "bin": Format("lfw.bin", pairs, nothing, lambda path: void(load_pairs(path))),
    "recipe": Format(
        "a.yaml",
        lambda: [path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))],
        nothing,
        lambda path: void(load_config(path)),
    ),
}


def void(_: object) -> None:
    pass


def attempt(which: Format, data: bytes, folder: Path) -> bool:
    """Whether the file was taken. AssertionError where it is refused in a line that does not name it."""
    path = folder / which.name
    path.write_bytes(data)
    try:
        with nothing_run():
            which.read(path)
    except (InputError, OSError) as error:
        line = format_error(error)
        assert which.name.split(".")[0] in line and line.isprintable() and len(line) < 600, repr(line)
        return False
    return True


_RUNNING = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.",
    "socket.",
    "ctypes.",
    "os.remove",
)
_reading = threading.local()


@contextmanager
def nothing_run() -> Iterator[None]:
    """Ends what runs, removes or sends something in the block with a SystemError."""
    _reading.now = True
    try:
        yield
    finally:
        _reading.now = False


def _watch(event: str, _: object) -> None:
    if event.startswith(_RUNNING) and getattr(_reading, "now", False):
        raise SystemError(f"{event} while a file was read")


sys.addaudithook(_watch)
