"""Embeddings of all images of a pack, in a folder: embeddings.npy, and about.json, which says of what and by what."""

from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from partialfc.errors import InputError
from partialfc.runtime.exit_codes import format_error
from partialfc.runtime.files import atomic_write, decode_json

STORAGE_DTYPE = np.float16  # of unit vectors: right within 2 ** -11 of a component

_ARRAY_FILE, _INFO_FILE = "embeddings.npy", "about.json"


class EmbeddingsInfo(msgspec.Struct, frozen=True):
    """What a folder of embeddings is of."""

    pack: str  # its fingerprint
    network: str  # the fingerprint of its file
    images: int
    width: int
    done: int = 0  # of the images, in the order of the pack

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """None where the folder has none yet; InputError where it is another file of that name."""
        path = folder / _INFO_FILE
        try:
            return decode_json(path.read_bytes(), cls, f"{path}: not by partialfc embed")
        except FileNotFoundError:
            return None

    def write(self, folder: Path) -> None:
        """Into a folder that is there."""
        with atomic_write(folder / _INFO_FILE) as temporary:
            temporary.write_bytes(msgspec.json.encode(self))


def open_array(
    folder: Path, about: EmbeddingsInfo, *, create: bool = False
) -> np.memmap[Any, np.dtype[np.float16]]:
    """[images, width] on the disk, in memory where they are looked at: to be written to. begin: as zeros."""
    mode = "w+" if create else "r+"
    shape = about.images, about.width
    return np.lib.format.open_memmap(folder / _ARRAY_FILE, mode=mode, dtype=STORAGE_DTYPE, shape=shape)


class StoredEmbeddings:
    """What a network makes of each image of a pack, as `partialfc embed` wrote it: read where it is asked for, in any
    process. InputError where the folder holds none, or not all.
    """

    def __init__(self, folder: Path) -> None:
        about = EmbeddingsInfo.read(folder)
        if about is None:
            raise InputError(f"{folder}: no embeddings of a pack; wanted a folder that partialfc embed wrote")
        if about.done < about.images:
            raise InputError(
                f"{folder}: {about.done} of {about.images} images are embedded; the same partialfc embed goes on"
            )
        self._folder, self._about = folder, about
        self._numbers: NDArray[np.float16] | None = None
        self._validate_array()

    @property
    def embedding_size(self) -> int:
        """Components of an embedding."""
        return self._about.width

    def check_pack(self, fingerprint: str, path: Path) -> None:
        """InputError where they are not of the pack at `path`, whose fingerprint is `fingerprint`."""
        if self._about.pack != fingerprint:
            raise InputError(
                f"{self._folder}: embeddings of another pack than {path} is now; wanted a partialfc embed of it"
            )

    def __getitem__(self, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit vectors [n, D] of the images at these places in the pack."""
        if self._numbers is None:
            self._numbers = self._map_array()
        return self._numbers[images].astype(np.float32)

    def _map_array(self) -> NDArray[np.float16]:
        path = self._folder / _ARRAY_FILE
        try:
            found: NDArray[np.float16] = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:  # which numpy raises of what is no array, or is cut off
            raise InputError(f"{path}: no array that numpy can map: {format_error(error)[:100]}") from None
        return found

    def _validate_array(self) -> None:
        found, wanted = self._map_array(), (self._about.images, self._about.width)
        if found.shape != wanted or found.dtype != STORAGE_DTYPE:
            raise InputError(
                f"{self._folder / _ARRAY_FILE}: {found.dtype} of shape {found.shape}; wanted float16 of shape {wanted}"
            )

    def __getstate__(self) -> dict[str, object]:
        """Without what is mapped: pickled it would be all of it."""
        return self.__dict__ | {"_numbers": None}
