"""PyTorch's flight recorder: the latest collectives of each rank, written where a run hangs."""

import os
from pathlib import Path

_ENTRIES = "2000"  # collectives that a rank remembers


def enable() -> None:
    """Record collectives from the first on; before the process group exists."""
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"):
        os.environ.setdefault(name, _ENTRIES)


def dump(folder: Path, rank: int) -> None:
    """Write what this rank recorded to `rank_N` in the folder, for `torchfrtrace`.

    Raises:
        ImportError: This build of PyTorch has no NCCL.
    """
    from torch._C._distributed_c10d import _dump_nccl_trace  # type: ignore[attr-defined]  # of builds with NCCL

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank_{rank}").write_bytes(_dump_nccl_trace())
