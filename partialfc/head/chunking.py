"""How many classes a step works on at once."""

# At most, of a chunk's rows and of its logits: what stays in a core's cache, or fills a GPU.
_ROWS_BYTES = {"cpu": 1 << 20, "cuda": 256 << 20}
_LOGITS_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}


def chunk_of(width: int, batch: int, device: str, itemsize: int, centers: int = 1) -> int:
    """How many classes, with `centers` each: [c centers, width] rows, [c centers, batch] logits. device: its type."""
    row, logits = width * itemsize, batch * itemsize
    fitting = min(_ROWS_BYTES[device] // row, _LOGITS_BYTES[device] // logits)
    return max(1, fitting // centers)
