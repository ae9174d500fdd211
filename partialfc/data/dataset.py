"""The images of a pack: what its header, its index and its `property` say, and whether they agree."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from partialfc.config import Reader
from partialfc.data import images
from partialfc.data.images import ImageArray
from partialfc.data.mxnet_records import MxnetRecords
from partialfc.data.recordio import CorruptRecordError, Header, IntArray, RecordFile
from partialfc.errors import InputError
from partialfc.runtime.progress import progress_bar

_IDENTITIES, _IMAGES = 1 << 20, 1 << 18  # records that are read to count classes

MAX_EXACT_FLOAT32 = 1 << 24  # the format's labels are float32: exact below this


class PackProperty(NamedTuple):
    """The file `property` of a pack: `classes,height,width`, and maybe more fields."""

    num_classes: int
    height: int
    width: int
    labels_in_id2: bool


class RecordDataset:
    """dataset[i] -> (uint8 RGB image [H, W, 3], int64 label), i from 0; len(dataset); dataset.num_classes.

    folder: holds train.rec (or file.rec, or a single .rec of another name), with .idx and `property` where
    there are any. Reads packs with a key-0 header and without (im2rec, reshuffled ones), labels that are one
    number or several, and tells images by key, not by flag. image_size: to which images are resized. transform: what
    a DataLoader gets in an image's place, given the image. reader: `mxnet` reads the records by its own code.
    InputError where the files are missing, cut off, or disagree.
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
            raise CorruptRecordError(f"{path}: holds no image")
        self.num_classes = self._property.num_classes if self._property else classes or self._count_classes()
        self._validate()

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        key = self.key(index)
        header, payload = self._records[key]
        pixels, label = self._decode(key, payload, self._size), self._checked_label(key, header)
        return (self._transform(pixels) if self._transform else pixels), label

    def prefetch_hint(self, samples: IntArray) -> None:
        """That these [n] will be read soon: see RecordFile.prefetch_hint."""
        keys = self._keys
        self._records.prefetch_hint(keys.start + samples if isinstance(keys, range) else keys[samples])

    @property
    def path(self) -> Path:
        """The .rec file."""
        return self._records.path

    @property
    def dialect(self) -> str:
        """Which tool writes such packs, by what marks them."""
        header = self._records[self.key(0)][0]
        labels = "one label" if header.flag == 0 else f"{header.flag} labels"
        properties = "a property" if self._property else "no property"
        if self._pack_header() is not None:
            name = "rec_builder" if header.flag == 0 else "face2rec2"
            return f"{name}: a key-0 header, {labels} an image, {properties}"
        name = "reshuffled" if self._property else "im2rec"
        return f"{name}: no key-0 header, {labels} an image, {properties}"

    def key(self, index: int) -> int:
        """The key of image `index`'s record."""
        return int(self._keys[index])

    def label(self, index: int) -> int:
        """The class of image `index`, which is not decoded."""
        return self._checked_label(self.key(index), self._records[self.key(index)][0])

    def labels(self, *, progress: bool = False) -> IntArray:
        """The class of every image, int64 [N]: reads the header of each. progress: whether a bar shows how far that is."""
        places = progress_bar(range(len(self)), f"reading {self.path.parent.name}", enabled=progress)
        return np.fromiter((self.label(it) for it in places), np.int64, len(self))

    def classes_with_images(self) -> int | None:
        """Return how many classes have images; None where only reading most of a large pack would tell, or it is damaged."""
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
        """Image `index` as it stands in the pack."""
        return bytes(self._records[self.key(index)][1])

    def _checked_label(self, key: int, header: Header) -> int:
        label = self._read_label(key, header)
        if not 0 <= label < self.num_classes:
            raise InputError(
                f"{self._records.path}, key {key}: label {label}; wanted 0 to {self.num_classes - 1}, "
                f"as there are {self.num_classes} classes"
            )
        return label

    def _pack_header(self) -> Header | None:
        """The header of the lowest key, where it is a pack's: key 0, several labels, no payload."""
        key = int(self._records.keys[0])
        header, payload = self._records[key]
        return header if key == 0 and header.flag and not len(payload) else None

    def _image_keys(self, header: Header | None) -> tuple[range | IntArray, int | None]:
        """The keys of the images, and the number of classes that the header names."""
        keys = self._records.keys
        if header is None:
            return keys, None
        assert isinstance(header.label, np.ndarray)
        path = self._records.path
        if header.flag < 2:
            raise CorruptRecordError(f"{path}: the key-0 header has {header.flag} labels, wanted 2")
        if not 1 <= header.label[0] <= header.label[1] < np.inf:
            raise CorruptRecordError(
                f"{path}: its header says {header.label[:2]}, wanted the ends of images and of records"
            )
        end, last = (int(label) for label in header.label[:2])
        if last >= MAX_EXACT_FLOAT32 and self._property is None:
            raise CorruptRecordError(
                f"{path}: its header is rounded ({last} records); wanted a `property` with the classes"
            )
        classes = (
            last - end if last < MAX_EXACT_FLOAT32 or self._property is None else self._property.num_classes
        )
        if (
            last >= MAX_EXACT_FLOAT32
        ):  # rounded: the images are what the header and the identities leave of the index
            end = len(keys) - (classes if self._has_identity_records() else 0)
        if self._property is not None and classes != self._property.num_classes:
            raise CorruptRecordError(
                f"{path.parent / 'property'}: {self._property.num_classes} classes, "
                f"the header of {path.name} says {classes}"
            )
        if end > 1 and not (end <= len(keys) and keys[end - 1] == end - 1):  # keys ascend, each once
            raise CorruptRecordError(
                f"{path}: its header says images 1 to {end - 1}, its index has {_format_keys(keys[1:])}"
            )
        return range(1, end), classes

    def _has_identity_records(self) -> bool:
        """Whether an identity record, with labels and no payload, stands at the highest key."""
        header, payload = self._records[int(self._records.keys[-1])]
        return bool(header.flag) and not len(payload)

    def _count_classes(self) -> int:
        """One more than the largest label; reads the header of every image."""
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

    def _validate(self) -> None:
        """What would only show in the middle of a run."""
        path, known = self._records.path, self._property
        if self.num_classes > MAX_EXACT_FLOAT32 and not (known and known.labels_in_id2):
            raise InputError(
                f"{path}: {self.num_classes} classes with float32 labels, which are rounded from {MAX_EXACT_FLOAT32} on; "
                f"wanted labels in id2, declared in `property`"
            )
        key = int(self._keys[0])
        height, width, _ = self._decode(key, self._records[key][1], None).shape
        if known and (known.height, known.width) != (height, width):
            raise InputError(
                f"{path.parent / 'property'}: images of {known.height} x {known.width}, "
                f"the first in {path.name} has {height} x {width}"
            )


def label_from_header(header: Header, *, in_id2: bool) -> int:
    """The class that an image's header names. ValueError where it is no integer."""
    if in_id2:
        return header.id2
    label = float(header.label[0] if isinstance(header.label, np.ndarray) else header.label)
    if not label.is_integer():
        raise InputError(f"label {label}, wanted an integer")
    return int(label)


def is_pack(folder: Path) -> bool:
    """Whether there is a .rec in it."""
    return any(folder.glob("*.rec"))


def find_record_file(folder: Path) -> Path:
    """The .rec of a pack. FileNotFoundError where there is none, or several that could be meant."""
    for name in ("train.rec", "file.rec"):
        if (folder / name).exists():
            return folder / name
    others = sorted(folder.glob("*.rec"))
    if len(others) != 1:
        found = ", ".join(path.name for path in others) or "no .rec file"
        raise FileNotFoundError(
            f"{folder}: {found if folder.is_dir() else 'no such folder'}; wanted train.rec"
        )
    return others[0]


def read_property(path: Path) -> PackProperty | None:
    """What the file says; None where it is not there."""
    if not path.exists():
        return None
    fields = path.read_text(encoding="utf-8", errors="replace").strip().split(",")
    try:
        classes, height, width = (int(field) for field in fields[:3])
    except ValueError:
        raise InputError(f"{path}: {','.join(fields)[:60]!r}, wanted classes,height,width") from None
    if min(classes, height, width) < 1:
        raise InputError(f"{path}: {','.join(fields)[:60]!r}, wanted numbers above 0")
    return PackProperty(classes, height, width, "id2" in fields[3:])


def _format_keys(keys: range | IntArray) -> str:
    return f"{len(keys)} more keys, {keys[0]} to {keys[-1]}" if len(keys) else "none"
