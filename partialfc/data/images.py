"""JPEG and its like to pixels and back. Pixels are uint8 RGB [H, W, 3]."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from partialfc.errors import InputError

ImageArray = NDArray[np.uint8]
EncodedImage = bytes | memoryview | ImageArray  # a file's content; an array of it is of one dimension

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}  # of files that are taken for images


def decode(encoded: EncodedImage, size: int | None = None) -> ImageArray:
    """Pixels [H, W, 3], resized to [size, size, 3] where a size is given. InputError where it is no image."""
    content = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) if len(content) else None
    if image is None:
        raise InputError(f"{len(content)} bytes that are no image OpenCV can read")
    pixels = np.asarray(image, np.uint8)
    return pixels if size is None else resize(pixels, size)


def read(path: Path, size: int | None = None) -> ImageArray:
    """As `decode`, of a file, which an InputError names."""
    try:
        return decode(path.read_bytes(), size)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder and its folders, sorted. InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{folder}: no images in it; wanted {', '.join(sorted(SUFFIXES))}")
    return found


def resize(pixels: ImageArray, size: int) -> ImageArray:
    """[size, size, 3]; shrinking averages over areas."""
    if pixels.shape[:2] == (size, size):
        return pixels
    method = cv2.INTER_AREA if size < min(pixels.shape[:2]) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=method), np.uint8)


def image_grid(images: Iterable[ImageArray], columns: int, rows: int) -> ImageArray:
    """Images [H, H, 3] side by side, at the size of the first; white where there are fewer than columns x rows."""
    made: ImageArray | None = None
    for place, face in enumerate(islice(images, columns * rows)):
        if made is None:
            size = len(face)
            made = np.full((rows * size, columns * size, 3), 255, np.uint8)
        top, left = place // columns * size, place % columns * size
        made[top : top + size, left : left + size] = resize(face, size)
    if made is None:
        raise InputError("no faces to show")
    return made


def file_suffix(encoded: bytes) -> str:
    """The usual end of the name of such a file; `.img` where it is none of the known ones."""
    known = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"RIFF": ".webp"}
    return next((name for start, name in known.items() if encoded.startswith(start)), ".img")


def write(path: Path, pixels: ImageArray) -> None:
    """An image file of the kind that the name says; InputError where OpenCV writes no such files."""
    try:
        done, content = cv2.imencode(path.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    except cv2.error:
        done = False
    if not done:
        raise InputError(f"{path}: wanted the name of a .png or .jpg file")
    path.write_bytes(content.tobytes())


def encode_jpeg(pixels: ImageArray, quality: int) -> bytes:
    """A JPEG file; quality 1 to 100."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
