"""Verification sets: pairs of a list as a .bin file."""

import math
import pickle
from pathlib import Path

from partialfc.data import images
from partialfc.errors import InputError
from partialfc.input_files import read_file
from partialfc.runtime.files import atomic_write


def write_pairs(path: Path, encoded: list[bytes], is_same: list[bool]) -> None:
    """Write a .bin set: the pickle of (images, issame); images 2 i and 2 i + 1 are pair i."""
    assert len(encoded) == 2 * len(is_same)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(pickle.dumps((encoded, is_same), protocol=4))


PersonImage = tuple[str, int]  # name of a person and number of the image


def pack_pairs(listing: Path, folder: Path, path: Path) -> int:
    """Pack the pairs of a list in the format of LFW's pairs.txt into a .bin file.

    Args:
        listing: The first line contains the numbers of folds and pairs, or of pairs only. The other lines are
            `NAME i j` for two images of one person, and `NAME i OTHER j` for images of two. Image 1 of NAME is
            folder/NAME/NAME_0001.jpg.
        folder: Folder of the images.
        path: File to write.

    Returns:
        Number of pairs.

    Raises:
        InputError: If a line is invalid, the number of pairs differs, or an image is unreadable.
    """
    lines = [line.split() for line in read_file(listing).decode(errors="surrogateescape").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or len(lines[0]) not in (1, 2) or not all(map(_is_number, lines[0])):
        raise InputError(f"{listing}, line 1: expected the numbers of folds and pairs, or of pairs only")
    pairs = [_parse_pair(f"{listing}, line {number}", fields) for number, fields in enumerate(lines[1:], 2)]
    expected = 2 * math.prod(int(field) for field in lines[0])
    if len(pairs) != expected:
        raise InputError(
            f"{listing}: {len(pairs)} pairs, expected {expected} according to line 1: equal numbers of same and different"
        )
    encoded = [_read_pair_image(folder, *shown) for pair in pairs for shown in pair]
    write_pairs(path, encoded, [first[0] == second[0] for first, second in pairs])
    return len(pairs)


def _parse_pair(location: str, fields: list[str]) -> tuple[PersonImage, PersonImage]:
    if "\0" in "".join(fields):
        raise InputError(f"{location}: contains a zero byte; expected NAME i j, or NAME i OTHER j")
    match fields:
        case [name, first, second] if _is_number(first) and _is_number(second):
            return (name, int(first)), (name, int(second))
        case [name, first, other, second] if _is_number(first) and _is_number(second):
            return (name, int(first)), (other, int(second))
    raise InputError(f"{location}: {' '.join(fields)[:60]!r}, expected NAME i j, or NAME i OTHER j")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _read_pair_image(folder: Path, name: str, number: int) -> bytes:
    path = folder / name / f"{name}_{number:04d}.jpg"
    content = read_file(path)
    try:
        images.decode(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return content
