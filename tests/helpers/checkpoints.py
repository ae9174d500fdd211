"""Checkpoints of small states, and whether what is loaded is what was saved."""

from pathlib import Path
from typing import Any

import torch

from partialfc.runtime import checkpoint, comm, dtensors
from partialfc.runtime.checkpoint import CheckpointManager

CPU = torch.device("cpu")


def state_of(dist_ctx: comm.DistContext, rows: int = 7, seed: int = 0) -> dict[str, Any]:
    """Tensors of every kind that a run has: split by rows, replicated, scalars, of several types."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(rows, 3, generator=generator)
    share = -(-rows // dist_ctx.world_size)
    mine = whole[dist_ctx.rank * share : (dist_ctx.rank + 1) * share].clone()
    return {
        "head": {
            "centers": dtensors.as_dtensor(mine, rows, dist_ctx.group),
            "counts": dtensors.as_dtensor(mine[:, 0].mul(100).to(torch.int32), rows, dist_ctx.group),
        },
        "weight": torch.randn(4, 2, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "steps": torch.tensor(seed),
        "none": torch.empty(0, 3),
    }


def zeros_like(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: zeros_like(it) if isinstance(it, dict) else torch.zeros_like(it) for name, it in state.items()
    }


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_equal(found[name], value)
        else:
            assert torch.equal(
                dtensors.local_rows_and_offset(found[name])[0], dtensors.local_rows_and_offset(value)[0]
            ), name


def save(folder: Path, dist_ctx: comm.DistContext, step: int, keep: int = 2, **kwargs: Any) -> list[str]:
    """Save, and return the warnings."""
    checkpoints = CheckpointManager(folder, keep=keep, dist_ctx=dist_ctx)
    checkpoints.save(step, state_of(dist_ctx, seed=step), {"seed": step}, elapsed_seconds=1.0, **kwargs)
    outcome = checkpoints.wait()
    assert outcome is not None and outcome.problem is None, outcome
    return outcome.warnings


def found_in(folder: Path, dist_ctx: comm.DistContext) -> checkpoint.VerifiedCheckpoint | None:
    return CheckpointManager(folder, keep=2, dist_ctx=dist_ctx).find_resume_point("auto")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
