"""Decoding and encoding of image files. Pixels are uint8 RGB `[H, W, 3]`."""

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from partialfc.errors import InputError
from partialfc.input_files import read_file
from partialfc.runtime.files import atomic_write

ImageArray = NDArray[np.uint8]
EncodedImage = bytes | memoryview | ImageArray  # contents of a file; one-dimensional if an array

# Environment variable; its default is set in partialfc/__init__.py.
_PIXEL_LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}  # suffixes of image files


def decode(encoded: EncodedImage, size: int | None = None) -> ImageArray:
    """Return the pixels `[H, W, 3]`, resized to `[size, size, 3]` if a size is given.

    Raises:
        InputError: If it is not an image, or has too many pixels.
    """
    content = np.frombuffer(encoded, np.uint8)
    try:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) if len(content) else None
    except cv2.error as error:
        expected = "an image that OpenCV can read"
        if "MAX_IMAGE_PIXELS" in str(error.err):
            expected = f"at most {os.environ.get(_PIXEL_LIMIT)} pixels ({_PIXEL_LIMIT})"
        raise InputError(f"{len(content)} bytes; expected {expected}") from None
    if image is None:
        raise InputError(f"{len(content)} bytes; expected an image that OpenCV can read")
    pixels = np.asarray(image, np.uint8)
    return pixels if size is None else resize(pixels, size)


def read(path: Path, size: int | None = None) -> ImageArray:
    """Decode a file, as `decode` does; an InputError contains its path."""
    content = read_file(path)
    try:
        return decode(content, size)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def list_images(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted.

    Raises:
        InputError: If nothing is found.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{folder}: contains no images; expected {', '.join(sorted(SUFFIXES))}")
    return found


def resize(pixels: ImageArray, size: int) -> ImageArray:
    """Resize to `[size, size, 3]`, with area averaging for shrinking."""
    if pixels.shape[:2] == (size, size):
        return pixels
    method = cv2.INTER_AREA if size < min(pixels.shape[:2]) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=method), np.uint8)


def image_grid(images: Iterable[ImageArray], columns: int, rows: int) -> ImageArray:
    """Return a grid of images `[H, H, 3]`, at the size of the first; missing images are white."""
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
    """Return the usual suffix for the contents of an image file; `.img` if the format is unknown."""
    known = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"RIFF": ".webp"}
    return next((name for start, name in known.items() if encoded.startswith(start)), ".img")


def write(path: Path, pixels: ImageArray) -> None:
    """Write an image file in the format of its suffix.

    Raises:
        InputError: If OpenCV does not support the format.
    """
    try:
        done, content = cv2.imencode(path.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    except cv2.error:
        done = False
    if not done:
        raise InputError(f"{path}: expected the name of a .png or .jpg file")
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.tobytes())


def encode_jpeg(pixels: ImageArray, quality: int) -> bytes:
    """Return a JPEG file; quality 1 to 100."""
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
