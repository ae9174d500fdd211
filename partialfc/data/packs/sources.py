"""Sources of images: folders of faces, lists, LMDB sets and WebDataset tars. Nothing is executed."""

import itertools
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from partialfc.data.images import SUFFIXES
from partialfc.data.packs.item import PackItem, parse_label
from partialfc.errors import InputError
from partialfc.input_files import require_file
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.files import file_fingerprint


class Source(Protocol):
    """Images in a fixed order, which can be iterated repeatedly."""

    def items(self) -> Iterator[PackItem]:
        """Yield all images.

        Raises:
            ValueError: If an entry is not an image or has no class.
        """

    def labels(self) -> Iterator[int]:
        """Yield the classes only, in the same order."""

    def num_images(self) -> int | None:
        """Return the number of images; None if unknown before reading."""

    def fingerprint_parts(self) -> Iterator[str]:
        """Return values that change with the images and their classes."""

    def names(self) -> dict[int, str]:
        """Return the names of the classes that have one."""


def open_source(path: Path, *, allow_empty: bool, root: Path | None = None) -> Source:
    """Open the source at `path`: a .lst, a .tar or a folder of tars, an LMDB, or a folder of identities.

    Args:
        path: File or folder.
        allow_empty: Whether identities without images are skipped; otherwise they are an error.
        root: Root of the paths in a .lst; None: the folder of the .lst.

    Returns:
        The source.

    Raises:
        InputError: If it is of another kind, or has no images.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix == ".lst":
        return source_from_list(path, root)
    if path.suffix in (".lmdb", ".mdb") or (path / "data.mdb").exists():
        from partialfc.data.packs.lmdb_source import LmdbSource  # imported late: an optional extra

        return LmdbSource(path)
    tars = [path] if path.suffix == ".tar" else sorted(path.glob("*.tar"))
    if tars:
        return TarSource(tars)
    if path.is_dir():
        return source_from_folders(path, allow_empty=allow_empty)
    raise InputError(f"{path}: expected a folder of identities, a .lst, an LMDB, a .tar or a folder of them")


@dataclass(frozen=True)
class FileSource:
    """Images in separate files."""

    files: Sequence[PackItem]

    def items(self) -> Iterator[PackItem]:
        """Yield all images."""
        return iter(self.files)

    def labels(self) -> Iterator[int]:
        """Yield the classes only, in the same order."""
        return (face.label for face in self.files)

    def num_images(self) -> int | None:
        """Return the number of images; None if unknown before reading."""
        return len(self.files)

    def fingerprint_parts(self) -> Iterator[str]:
        """Yield values that change with the images and their classes."""
        return (f"{face.label} {file_fingerprint(Path(face.location))}" for face in self.files)

    def names(self) -> dict[int, str]:
        """Return the folder name of each class's first image."""
        found: dict[int, str] = {}
        for face in self.files:
            found.setdefault(face.label, Path(face.location).parent.name)
        return found


def source_from_folders(folder: Path, *, allow_empty: bool) -> FileSource:
    """Return the images folder/IDENTITY/IMAGE; classes follow the sorted identity names, images the sorted file names.

    Raises:
        InputError: If there are no identities or, unless `allow_empty`, one without images.
    """
    folders = [path for path in _entries(folder) if path.is_dir()]
    if not folders:
        raise InputError(f"{folder}: contains no folders; expected one folder of images per identity")
    found = []
    for label, identity in enumerate(folders):
        images = [str(path) for path in _entries(identity) if path.suffix.lower() in SUFFIXES]
        if not images and not allow_empty:
            expected = ", ".join(sorted(SUFFIXES))
            raise InputError(f"{identity}: contains no images; expected {expected}, or --min-images")
        found += [PackItem(label, image, image) for image in images]
    return FileSource(found)


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def source_from_list(listing: Path, root: Path | None = None) -> FileSource:
    """Return the files of a tab-separated .lst, in its order.

    Both formats are supported: im2rec's `number, label[, labels], path`, and insightface's `aligned, path,
    label[, box]`. Paths are relative to `root`, or to the folder of the .lst.

    Raises:
        InputError: If a line has neither format.
    """
    found = []
    require_file(listing)
    with listing.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                label, path = _parse_line(f"{listing}, line {number}", line.rstrip("\r\n").split("\t"))
                full = str((root or listing.parent) / path)
                found.append(PackItem(label, full, full))
    if not found:
        raise InputError(f"{listing}: is empty")
    return FileSource(found)


def _parse_line(location: str, fields: list[str]) -> tuple[int, str]:
    """Return class and path. A path ends with an image suffix; im2rec's is the last field."""
    for name, label in ((fields[-1], fields[1:2]), (fields[1] if len(fields) > 2 else "", fields[2:3])):
        if PurePosixPath(name).suffix.lower() in SUFFIXES and "\0" not in name and label:
            return parse_label(location, label[0]), name
    shown = " ".join(fields)[:60]
    raise InputError(
        f"{location}: {shown!r}, expected number, label, path, or aligned, path, label, between tabs"
    )


@dataclass(frozen=True)
class TarSource:
    """WebDataset shards: NAME.jpg (or another image) next to NAME.cls with its class as text. Read as a stream."""

    shards: Sequence[Path]

    def items(self) -> Iterator[PackItem]:
        """Yield all images."""
        for shard in self.shards:
            for name, parts in _iter_groups(shard):
                place = f"{shard}, {name}"
                content = next((it for suffix, it in parts.items() if suffix in SUFFIXES), None)
                if content is None or ".cls" not in parts:
                    found = ", ".join(sorted(parts))
                    raise InputError(f"{place}: {found}, expected an image and its class in a .cls")
                yield PackItem(parse_label(place, parts[".cls"].strip()), place, content)

    def labels(self) -> Iterator[int]:
        """Yield the classes only, in the same order."""
        return (face.label for face in self.items())

    def names(self) -> dict[int, str]:
        """Return an empty dict: classes have no names."""
        return {}

    def num_images(self) -> int | None:
        """Return the number of images; None if unknown before reading."""
        return None

    def fingerprint_parts(self) -> Iterator[str]:
        """Yield values that change with the images and their classes."""
        return map(file_fingerprint, self.shards)


def _iter_groups(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield groups of consecutive members with the same name, up to its first dot: their contents by suffix."""
    with _convert_errors(shard), tarfile.open(shard, "r|*") as members:
        for name, group in itertools.groupby(filter(tarfile.TarInfo.isfile, members), _without_suffix):
            parts = {}
            for member in group:
                file = members.extractfile(member)
                assert file is not None  # a regular file
                parts[member.name[len(name) :].lower()] = file.read()
            yield name, parts


def _without_suffix(member: tarfile.TarInfo) -> str:
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.split(".")[0]


@contextmanager
def _convert_errors(path: Path) -> Iterator[None]:
    """Convert errors of the libraries for a damaged file to InputError with its path."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: {format_error(error)}") from None
