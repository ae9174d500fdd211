"""Images of a pack, with consistency checks of header, index and `property`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from partialfc.config import Reader
from partialfc.data import images
from partialfc.data.images import ImageArray
from partialfc.data.index import IntArray
from partialfc.data.mxnet_records import MxnetRecords
from partialfc.data.recordio import CorruptRecordError, Header, RecordFile
from partialfc.errors import InputError
from partialfc.input_files import read_file
from partialfc.runtime.progress import progress_bar

_IDENTITIES, _IMAGES = 1 << 20, 1 << 18  # records to read for counting classes

MAX_EXACT_FLOAT32 = 1 << 24  # labels are float32 in the format: exact below this number


class PackProperty(NamedTuple):
    """Contents of the file `property` of a pack: `classes,height,width`, possibly with more fields."""

    num_classes: int
    height: int
    width: int
    labels_in_id2: bool


class RecordDataset:
    """Map-style dataset: dataset[i] -> (uint8 RGB image `[H, W, 3]`, int64 label).

    Reads packs with and without a key-0 header (im2rec, reshuffled packs), and labels of one or several
    numbers. Images are identified by key, not by flag.

    Args:
        folder: Contains train.rec (or file.rec, or a single .rec of another name), and .idx and
            `property` if they exist.
        image_size: Size that images are resized to; None: no resizing.
        transform: Applied to each image in a DataLoader.
        reader: `native`, or `mxnet` for mxnet's own record reader.

    Raises:
        InputError: If files are missing, truncated or inconsistent.
    """

    def __init__(
        self,
        folder: Path | str,
        image_size: int | None = None,
        *,
        transform: Callable[[ImageArray], Any] | None = None,
        reader: Reader = "native",
    ) -> None:
        folder = Path(folder)
        path = find_record_file(folder)
        self._records = RecordFile(path) if reader == "native" else MxnetRecords(path)
        self._size, self._transform = image_size, transform
        self._property = read_property(folder / "property")
        self._keys, classes = self._image_keys(self._pack_header())
        if not len(self._keys):
            raise CorruptRecordError(f"{path}: contains no images")
        self.num_classes = self._property.num_classes if self._property else classes or self._count_classes()
        self._first_shape = self._validate()

    @property
    def image_bytes(self) -> int:
        """Number of bytes of a decoded image."""
        return self._size**2 * 3 if self._size else math.prod(self._first_shape)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        key = self.key(index)
        header, payload = self._records[key]
        pixels, label = self._decode(key, payload, self._size), self._checked_label(key, header)
        return (self._transform(pixels) if self._transform else pixels), label

    def prefetch_hint(self, samples: IntArray) -> None:
        """Announce that these images `[n]` will be read soon; see `RecordFile.prefetch_hint`."""
        keys = self._keys
        self._records.prefetch_hint(keys.start + samples if isinstance(keys, range) else keys[samples])

    @property
    def path(self) -> Path:
        """Path of the .rec file."""
        return self._records.path

    @property
    def dialect(self) -> str:
        """Tool that writes packs of this layout, and its distinguishing features."""
        header = self._records[self.key(0)][0]
        labels = "one label" if header.flag == 0 else f"{header.flag} labels"
        properties = "a property" if self._property else "no property"
        if self._pack_header() is not None:
            name = "rec_builder" if header.flag == 0 else "face2rec2"
            return f"{name}: a key-0 header, {labels} per image, {properties}"
        name = "reshuffled" if self._property else "im2rec"
        return f"{name}: no key-0 header, {labels} per image, {properties}"

    def key(self, index: int) -> int:
        """Return the record key of image `index`."""
        return int(self._keys[index])

    def label(self, index: int) -> int:
        """Return the class of image `index`, without decoding it."""
        return self._checked_label(self.key(index), self._records[self.key(index)][0])

    def labels(self, *, progress: bool = False) -> IntArray:
        """Return the class of every image, int64 `[N]`, from the record headers."""
        places = progress_bar(range(len(self)), f"reading {self.path.parent.name}", enabled=progress)
        return np.fromiter((self.label(it) for it in places), np.int64, len(self))

    def classes_with_images(self) -> int | None:
        """Return the number of classes with images.

        None if that requires reading most of a large pack, or if it is damaged.
        """
        try:
            return self._count_present()
        except (InputError, OSError):
            return None

    def _count_present(self) -> int | None:
        header, keys = self._pack_header(), self._records.keys
        first = len(self._keys) + 1  # of the identity records
        if header is not None and self._has_identity_records() and len(keys) - first <= _IDENTITIES:
            ranges = (self._records[int(key)][0].label for key in keys[first:])
            return sum(bool(it[1] > it[0]) for it in ranges if isinstance(it, np.ndarray) and len(it) > 1)
        return len(np.unique(self.labels())) if len(self) <= _IMAGES else None

    def encoded_image(self, index: int) -> bytes:
        """Return the encoded image `index`."""
        return bytes(self._records[self.key(index)][1])

    def _checked_label(self, key: int, header: Header) -> int:
        label = self._read_label(key, header)
        if not 0 <= label < self.num_classes:
            raise InputError(
                f"{self._records.path}, key {key}: label {label}; expected 0 to {self.num_classes - 1}, "
                f"as there are {self.num_classes} classes"
            )
        return label

    def _pack_header(self) -> Header | None:
        """Return the header with the lowest key if it is a pack header: key 0, several labels, no payload."""
        key = int(self._records.keys[0])
        header, payload = self._records[key]
        return header if key == 0 and header.flag and not len(payload) else None

    def _image_keys(self, header: Header | None) -> tuple[range | IntArray, int | None]:
        """Return the keys of the images, and the number of classes according to the header."""
        keys = self._records.keys
        if header is None:
            return keys, None
        assert isinstance(header.label, np.ndarray)
        path = self._records.path
        if header.flag < 2:
            raise CorruptRecordError(f"{path}: the key-0 header has {header.flag} labels, expected 2")
        if not 1 <= header.label[0] <= header.label[1] < np.inf:
            raise CorruptRecordError(
                f"{path}: its header has {header.label[:2]}; expected the ends of images and of records"
            )
        end, last = (int(label) for label in header.label[:2])
        if last >= MAX_EXACT_FLOAT32 and self._property is None:
            raise CorruptRecordError(
                f"{path}: its header is rounded ({last} records); expected a `property` with the classes"
            )
        classes = (
            last - end if last < MAX_EXACT_FLOAT32 or self._property is None else self._property.num_classes
        )
        if last >= MAX_EXACT_FLOAT32:  # rounded: the images are the keys without header and identities
            end = len(keys) - (classes if self._has_identity_records() else 0)
        if self._property is not None and classes != self._property.num_classes:
            raise CorruptRecordError(
                f"{path.parent / 'property'}: {self._property.num_classes} classes, "
                f"the header of {path.name} says {classes}"
            )
        if end > 1 and not (end <= len(keys) and keys[end - 1] == end - 1):  # keys are ascending and unique
            raise CorruptRecordError(
                f"{path}: its header lists images 1 to {end - 1}, its index has {_format_keys(keys[1:])}"
            )
        return range(1, end), classes

    def _has_identity_records(self) -> bool:
        """Return True if the record with the highest key is an identity record: labels and no payload."""
        header, payload = self._records[int(self._records.keys[-1])]
        return bool(header.flag) and not len(payload)

    def _count_classes(self) -> int:
        """Return one more than the largest label, from the header of every image."""
        return 1 + max(self._read_label(int(key), self._records[int(key)][0]) for key in self._keys)

    def _read_label(self, key: int, header: Header) -> int:
        try:
            return label_from_header(
                header, in_id2=self._property is not None and self._property.labels_in_id2
            )
        except InputError as error:
            raise InputError(f"{self._records.path}, key {key}: {error}") from None

    def _decode(self, key: int, payload: bytes | memoryview, size: int | None) -> ImageArray:
        try:
            return images.decode(payload, size)
        except InputError as error:
            raise InputError(f"{self._records.path}, key {key}: {error}") from None

    def _validate(self) -> tuple[int, ...]:
        """Detect problems that would otherwise occur in the middle of a run; return the shape of the first image."""
        path, known = self._records.path, self._property
        if self.num_classes > MAX_EXACT_FLOAT32 and not (known and known.labels_in_id2):
            raise InputError(
                f"{path}: {self.num_classes} classes with float32 labels, which are inexact from {MAX_EXACT_FLOAT32} on; "
                f"expected labels in id2, declared in `property`"
            )
        key = int(self._keys[0])
        shape = height, width, _ = self._decode(key, self._records[key][1], None).shape
        if known and (known.height, known.width) != (height, width):
            raise InputError(
                f"{path.parent / 'property'}: images of {known.height} x {known.width}, "
                f"the first in {path.name} has {height} x {width}"
            )
        return shape


def label_from_header(header: Header, *, in_id2: bool) -> int:
    """Return the class in an image's header.

    Raises:
        InputError: If it is not an integer.
    """
    if in_id2:
        return header.id2
    label = float(header.label[0] if isinstance(header.label, np.ndarray) else header.label)
    if not label.is_integer():
        raise InputError(f"label {label}, expected an integer")
    return int(label)


def is_pack(folder: Path) -> bool:
    """Return True if the folder contains a .rec file."""
    return any(folder.glob("*.rec"))


def find_record_file(folder: Path) -> Path:
    """Return the .rec file of a pack.

    Raises:
        FileNotFoundError: If it does not exist, or if several are possible.
    """
    for name in ("train.rec", "file.rec"):
        if (folder / name).exists():
            return folder / name
    others = sorted(folder.glob("*.rec"))
    if len(others) != 1:
        found = ", ".join(path.name for path in others) or "no .rec file"
        raise FileNotFoundError(
            f"{folder}: {found if folder.is_dir() else 'no such folder'}; expected train.rec"
        )
    return others[0]


def read_property(path: Path) -> PackProperty | None:
    """Read `property`; None if it does not exist."""
    if not path.exists():
        return None
    fields = read_file(path).decode(errors="replace").strip().split(",")
    try:
        classes, height, width = (int(field) for field in fields[:3])
    except ValueError:
        raise InputError(f"{path}: {','.join(fields)[:60]!r}, expected classes,height,width") from None
    if min(classes, height, width) < 1:
        raise InputError(f"{path}: {','.join(fields)[:60]!r}, expected numbers above 0")
    return PackProperty(classes, height, width, "id2" in fields[3:])


def _format_keys(keys: range | IntArray) -> str:
    return f"{len(keys)} more keys, {keys[0]} to {keys[-1]}" if len(keys) else "none"
