"""Verification sets as the field's .bin files have them; nothing in a file is executed."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialfc.data.images import Encoded

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"{core}.multiarray", name)
        for core in ("numpy.core", "numpy._core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"{core}.numeric", "_frombuffer") for core in ("numpy.core", "numpy._core")),
    ("_codecs", "encode"),  # protocol 2 writes bytes so
}


@dataclass(frozen=True)
class Pairs:
    """A verification set of P pairs."""

    path: Path
    images: list[Encoded]  # [2 P]; 2 i and 2 i + 1 are pair i
    same: NDArray[np.bool_]  # [P] whether a pair shows one person

    @property
    def name(self) -> str:
        """The file's, without .bin."""
        return self.path.stem


def load_pairs(path: Path) -> Pairs:
    """The set in a .bin: a pickle of (images, issame), of python 2 or 3, images as bytes or as uint8 arrays.

    ValueError where the file holds anything else, or fewer than 10 pairs, one for each fold; a pickle that
    names a class or function beyond numpy's arrays is refused, and nothing of it runs.
    """
    try:
        loaded = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise ValueError(f"{path}: not a pickle of (images, issame): {error}") from None
    if not (isinstance(loaded, tuple | list) and len(loaded) == 2):
        raise ValueError(f"{path}: a {type(loaded).__name__}, wanted (images, issame)")
    images, same = (list(part) if isinstance(part, list | tuple | np.ndarray) else None for part in loaded)
    if images is None or same is None or len(images) != 2 * len(same) or len(same) < 10:
        found = " and ".join(str(len(part)) if part is not None else "no list" for part in (images, same))
        raise ValueError(
            f"{path}: {found} images and issame; wanted two images a pair, and 10 pairs at least"
        )
    return Pairs(
        path, [_encoded(path, place, image) for place, image in enumerate(images)], np.array(same, bool)
    )


def _encoded(path: Path, place: int, image: Any) -> Encoded:
    if isinstance(image, bytes) or (
        isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 1
    ):
        return image
    raise ValueError(f"{path}: image {place} is a {type(image).__name__}, wanted bytes or a uint8 array")


class _Refused(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise _Refused(f"names {module}.{name}; wanted bytes, numpy arrays and lists only")
