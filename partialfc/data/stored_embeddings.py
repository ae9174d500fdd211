"""Embeddings of all images of a pack in a folder: embeddings.npy, and about.json with their origin."""

from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from partialfc.errors import InputError
from partialfc.input_files import read_file, require_file
from partialfc.runtime.error_messages import format_error
from partialfc.runtime.files import atomic_write, decode_json
from partialfc.runtime.platform import allocate_file

STORAGE_DTYPE = np.float16  # of unit vectors: the error per component is below 2 ** -11

_ARRAY_FILE, _INFO_FILE = "embeddings.npy", "about.json"


class EmbeddingsInfo(msgspec.Struct, frozen=True):
    """Origin of a folder of embeddings."""

    pack: str  # fingerprint of the pack
    network: str  # fingerprint of the model's file
    images: int
    width: int
    done: int = 0  # finished images, in the order of the pack

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read about.json; None if it does not exist.

        Returns:
            Contents of about.json, or None.

        Raises:
            InputError: If it is a different file of that name.
        """
        path = folder / _INFO_FILE
        try:
            return decode_json(read_file(path), cls, f"{path}: expected a file of partialfc embed")
        except FileNotFoundError:
            return None

    def write(self, folder: Path) -> None:
        """Write about.json into an existing folder."""
        with atomic_write(folder / _INFO_FILE) as temporary:
            temporary.write_bytes(msgspec.json.encode(self))


def open_array(
    folder: Path, about: EmbeddingsInfo, *, create: bool = False
) -> np.memmap[Any, np.dtype[np.float16]]:
    """Return the writable array `[images, embedding_size]`, memory-mapped; `create`: filled with zeros.

    Raises:
        OSError: If the disk is too small for it.
    """
    mode = "w+" if create else "r+"
    shape = about.images, about.width
    path = folder / _ARRAY_FILE
    array = np.lib.format.open_memmap(path, mode=mode, dtype=STORAGE_DTYPE, shape=shape)
    if create:
        allocate_file(path)
    return array


class StoredEmbeddings:
    """Embeddings of all images of a pack, written by `partialfc embed` and read lazily in any process.

    Raises:
        InputError: If the folder does not contain all of them.
    """

    def __init__(self, folder: Path) -> None:
        about = EmbeddingsInfo.read(folder)
        if about is None:
            raise InputError(f"{folder}: expected a folder written by partialfc embed")
        if about.done < about.images:
            raise InputError(
                f"{folder}: {about.done} of {about.images} images are embedded; rerun partialfc embed to resume"
            )
        self._folder, self._about = folder, about
        self._numbers: NDArray[np.float16] | None = None
        self._validate_array()

    @property
    def embedding_size(self) -> int:
        """Embedding size."""
        return self._about.width

    def check_pack(self, fingerprint: str, path: Path) -> None:
        """Raise InputError if the embeddings are not of the pack at `path` with this fingerprint."""
        if self._about.pack != fingerprint:
            raise InputError(
                f"{self._folder}: embeddings of a pack that differs from {path}; run partialfc embed on it"
            )

    def __getitem__(self, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return L2-normalized embeddings `[n, D]` of the images at these indices of the pack."""
        if self._numbers is None:
            self._numbers = self._map_array()
        return self._numbers[images].astype(np.float32)

    def _map_array(self) -> NDArray[np.float16]:
        path = self._folder / _ARRAY_FILE
        require_file(path)
        try:
            found: NDArray[np.float16] = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:  # a file that is truncated or not an array
            raise InputError(
                f"{path}: expected an array that numpy can map: {format_error(error)[:100]}"
            ) from None
        return found

    def _validate_array(self) -> None:
        found, expected = self._map_array(), (self._about.images, self._about.width)
        if found.shape != expected or found.dtype != STORAGE_DTYPE:
            raise InputError(
                f"{self._folder / _ARRAY_FILE}: {found.dtype} of shape {found.shape}; expected float16 of shape {expected}"
            )

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the memory map, which would be pickled as a whole."""
        return self.__dict__ | {"_numbers": None}
