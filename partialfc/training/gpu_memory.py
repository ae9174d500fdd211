"""Report of a rank whose GPU has no memory left."""

import socket
from pathlib import Path

import torch

from partialfc.runtime.comm import DistContext

_SENTENCES = 3  # of torch's message: what was requested, and what the GPU has
_REMEDIES = (
    "lower train.micro_batch_size or head.logits_budget, or set backbone.gradient_checkpointing; `partialfc plan` estimates "
    "the memory of a rank"
)


def explain_out_of_memory(error: torch.OutOfMemoryError, output: Path, dist_ctx: DistContext) -> str:
    """Write a snapshot of the allocator's memory, for https://pytorch.org/memory_viz.

    Returns:
        Message of one line, with the place of the snapshot.
    """
    sentences = " ".join(str(error).split()).split(". ")[:_SENTENCES]
    path = (output / f"out_of_memory/rank_{dist_ctx.rank:05d}.pickle").absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(path))
        snapshot = f"snapshot of its memory: {path}"
    except (OSError, RuntimeError) as problem:
        snapshot = f"no snapshot of its memory: {problem}"
    where = f"rank {dist_ctx.rank} on {socket.gethostname()}"
    return f"{where}: {'. '.join(sentences).removesuffix('.')}; {_REMEDIES}; {snapshot}"
