"""The fingerprint of a pack: by which it is known again, without reading all of it."""

import hashlib
from pathlib import Path

from partialfc.data.dataset import find_record_file

_NUM_BLOCKS = 64  # of the .rec, evenly spaced, its beginning and its end among them
_BLOCK_BYTES = 1 << 16  # of each


def pack_fingerprint(folder: Path) -> str:
    """The sha256 of a pack's index, its property, the length of its .rec, and 64 parts of it. OSError where the pack is not
    there.
    """
    record = find_record_file(folder)
    size = record.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with record.open("rb") as file:
        for part in range(_NUM_BLOCKS):
            file.seek(max(0, size - _BLOCK_BYTES) * part // (_NUM_BLOCKS - 1))
            found.update(file.read(_BLOCK_BYTES))
    for path in (record.with_suffix(".idx"), folder / "property"):
        if path.exists():
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
