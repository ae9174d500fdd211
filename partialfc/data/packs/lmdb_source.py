"""Face sets in LMDB."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import msgpack

from partialfc.data.packs.item import PackItem, parse_label
from partialfc.errors import InputError
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.files import file_fingerprint


@dataclass(frozen=True)
class LmdbSource:
    """LMDB set, a folder or a file: values are msgpack of [image, class]; `__keys__` optionally lists their keys."""

    path: Path

    def items(self) -> Iterator[PackItem]:
        """Yield all images."""
        with self._open() as found:
            for key in self._keys(found):
                place = f"{self.path}, key {key.decode(errors='replace')}"
                match _unpack_list(place, found.get(key)):
                    case [bytes() as content, (int() | bytes()) as label, *_]:
                        yield PackItem(
                            parse_label(place, str(label) if isinstance(label, int) else label),
                            place,
                            content,
                        )
                    case _:
                        raise InputError(f"{place}: expected msgpack of [image, class]")

    def labels(self) -> Iterator[int]:
        """Yield the classes only, in the same order."""
        return (face.label for face in self.items())

    def names(self) -> dict[int, str]:
        """Return an empty dict: classes have no names."""
        return {}

    def num_images(self) -> int | None:
        """Return the number of images; None if unknown before reading."""
        with self._open() as found:
            return int(found.stat()["entries"])

    def fingerprint_parts(self) -> Iterator[str]:
        """Yield values that change with the images and their classes."""
        yield file_fingerprint(self.path / "data.mdb" if self.path.is_dir() else self.path)

    @contextmanager
    def _open(self) -> Iterator[lmdb.Transaction]:
        """Open the database; convert the library's errors for damaged files to InputError."""
        is_folder = self.path.is_dir()
        try:
            with (
                lmdb.open(str(self.path), subdir=is_folder, readonly=True, lock=False) as environment,
                environment.begin() as found,
            ):
                yield found
        except lmdb.Error as error:
            raise InputError(f"{self.path}: {format_error(error)}") from None

    def _keys(self, found: lmdb.Transaction) -> Iterator[bytes]:
        place, listed = f"{self.path}, key __keys__", found.get(b"__keys__")
        if listed is None:
            keys = map(bytes, found.cursor().iternext(values=False))
            yield from (key for key in keys if not key.startswith(b"__"))
        else:
            for key in _unpack_list(place, listed):
                if not isinstance(key, bytes):
                    raise InputError(f"{place}: expected msgpack of a list of keys")
                yield key


def _unpack_list(location: str, value: bytes | memoryview | None) -> list[Any]:
    """Return a packed list or tuple; its strings are bytes."""
    if value is None:
        raise InputError(f"{location}: not there")
    try:
        found = msgpack.unpackb(value, raw=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise InputError(f"{location}: expected msgpack: {format_error(error)}") from None
    if not isinstance(found, list):
        raise InputError(f"{location}: msgpack of {type(found).__name__}, expected a list")
    return found
