"""Fingerprint of a pack, computed without reading all of it."""

import hashlib
from pathlib import Path

from partialfc.data.dataset import find_record_file
from partialfc.input_files import require_file

_NUM_BLOCKS = 64  # blocks of the .rec, evenly spaced, including the first and last
_BLOCK_BYTES = 1 << 16  # bytes per block


def pack_fingerprint(folder: Path) -> str:
    """Return the sha256 of a pack's index, its property, the size of its .rec, and 64 blocks of the .rec.

    Raises:
        OSError: If the pack does not exist.
    """
    record = find_record_file(folder)
    size = record.stat().st_size
    found = hashlib.sha256(str(size).encode())
    require_file(record)
    with record.open("rb") as file:
        for part in range(_NUM_BLOCKS):
            file.seek(max(0, size - _BLOCK_BYTES) * part // (_NUM_BLOCKS - 1))
            found.update(file.read(_BLOCK_BYTES))
    for path in (record.with_suffix(".idx"), folder / "property"):
        if path.exists():
            require_file(path)
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
