"""PyTorch's flight recorder: the latest collectives of each rank, written if a run hangs."""

import os
from pathlib import Path

_ENTRIES = "2000"  # collectives recorded per rank


def enable() -> None:
    """Record all collectives; call it before the process group is created."""
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"):
        os.environ.setdefault(name, _ENTRIES)


def dump(folder: Path, rank: int) -> None:
    """Write the records of this rank to `rank_N` in the folder, for `torchfrtrace`.

    Raises:
        ImportError: If this build of PyTorch has no NCCL.
    """
    from torch._C._distributed_c10d import _dump_nccl_trace  # type: ignore[attr-defined]  # of builds with NCCL

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank_{rank}").write_bytes(_dump_nccl_trace())
