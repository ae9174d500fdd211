"""What may become of a file."""

import random
from collections.abc import Iterator
from pathlib import Path


def damages(path: Path) -> Iterator[bytes | None]:
    """A file's content with one bit flipped, at 40 places; cut; extended; and None: gone."""
    content, draw = path.read_bytes(), random.Random(0)
    for place in draw.sample(range(len(content)), 40):
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        yield bytes(flipped)
    for size in (0, 1, len(content) // 2, len(content) - 1):
        yield content[:size]
    yield content + b"\0"
    yield None
