"""Index of a record file: offsets of records by key; cached and memory-mapped for large files.

A cache file consists of a header of 8 int64 words and the arrays: offsets `[n]`, and keys `[n]` unless they
are consecutive.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partialfc.errors import InputError
from partialfc.runtime.files import atomic_write, file_fingerprint, file_lock

IntArray = NDArray[np.int64]
BuildIndex = Callable[[], tuple[IntArray, IntArray]]  # returns keys `[n]` and offsets `[n]`, in any order

MIN_CACHED_BYTES = 16 << 20  # bytes of the source; smaller ones are read within a second
_MAGIC, _VERSION, _WORDS = 0x5844494346504E4F, 1, 8


@dataclass
class Index:
    """Ascending keys and the offsets of their records."""

    keys: range | IntArray  # `[n]`; a range if they are consecutive
    offsets: IntArray  # `[n]`
    cache: Path | None = None  # file that both are mapped from

    def find(self, key: int) -> int | None:
        """Return the offset of a record; None if the key does not exist."""
        if isinstance(self.keys, range):
            return int(self.offsets[key - self.keys.start]) if key in self.keys else None
        place = np.searchsorted(self.keys, key)
        return int(self.offsets[place]) if place < len(self.keys) and self.keys[place] == key else None

    def offsets_of(self, keys: IntArray) -> IntArray:
        """Return the offsets of existing records."""
        places = keys - self.keys.start if isinstance(self.keys, range) else np.searchsorted(self.keys, keys)
        return np.asarray(self.offsets[places])

    def __getstate__(self) -> dict[str, Any]:
        return {"cache": self.cache} if self.cache else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        cache = state["cache"]
        self.__dict__.update(vars(_map_cache(cache)) if cache else state)


def sorted_index(keys: IntArray, offsets: IntArray) -> Index:
    """Return the index sorted by key.

    Raises:
        InputError: If a key occurs twice.
    """
    if len(keys) and (keys[1:] < keys[:-1]).any():
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
    repeated = keys[1:][keys[1:] == keys[:-1]]
    if len(repeated):
        raise InputError(f"key {repeated[0]} occurs in several records")
    if len(keys) and int(keys[-1]) - int(keys[0]) == len(keys) - 1:
        return Index(range(int(keys[0]), int(keys[-1]) + 1), offsets)
    return Index(keys, offsets)


def cached_index(sources: Sequence[Path], build: BuildIndex) -> Index:
    """Return the index that `build` computes from `sources`, or its cached result if they are unchanged.

    The cache is stored next to the first source or, if that is not writable, in the user's cache folder. If
    several processes need it at the same time, one builds it.
    """
    if sources[0].stat().st_size < MIN_CACHED_BYTES:
        return sorted_index(*build())
    stamp = _sources_hash(sources)
    places = [sources[0].with_name(f".{sources[0].name}.cache")]
    if (own := _user_cache_path(sources[0])) is not None:
        places.append(own)
    if (found := _load_cached(places, stamp)) is not None:
        return found
    with file_lock(Path(tempfile.gettempdir(), f"partialfc-{os.getuid()}-{stamp:x}.lock")):
        if (found := _load_cached(places, stamp)) is not None:
            return found
        made = sorted_index(*build())
        for place in places:
            if _write_cache(made, place, stamp):
                return _map_cache(place)
    return made


def _sources_hash(sources: Sequence[Path]) -> int:
    """Return a hash that changes with the files and with any change of them."""
    text = "\n".join(map(file_fingerprint, sources))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def _user_cache_path(source: Path) -> Path | None:
    """Return the path in the cache folder of the user; None for a user without a home directory."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return home / "partialfc" / hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:32]


def _load_cached(candidates: Sequence[Path], stamp: int) -> Index | None:
    for place in candidates:
        try:
            header = np.fromfile(place, np.int64, _WORDS)
            if len(header) == _WORDS and tuple(header[:3]) == (_MAGIC, _VERSION, stamp):
                return _map_cache(place)
        except (OSError, ValueError):
            continue  # missing, not readable or truncated: it is rebuilt
    return None


def _write_cache(index: Index, path: Path, stamp: int) -> bool:
    """Write the cache; return True if that was possible."""
    follow = isinstance(index.keys, range)
    header = np.zeros(_WORDS, np.int64)
    header[:6] = _MAGIC, _VERSION, stamp, len(index.offsets), index.keys[0], follow
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            for array in (header, index.offsets, *(() if follow else (index.keys,))):
                np.asarray(array, np.int64).tofile(file)
    except OSError:
        return False
    return True


def _map_cache(path: Path) -> Index:
    """Map a cache file.

    Returns:
        Memory-mapped index.

    Raises:
        InputError: If its size differs from its header.
    """
    header = np.fromfile(path, np.int64, _WORDS)
    length, first, follow = (int(word) for word in header[3:6])
    words = np.memmap(path, np.int64, "r", offset=8 * _WORDS)
    if len(words) != length * (1 if follow else 2):
        raise InputError(f"{path}: {len(words)} words, expected {length} entries")
    keys = range(first, first + length) if follow else words[length:]
    return Index(keys, words[:length], path)
