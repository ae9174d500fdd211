"""Checkpoints of small states, and whether what is loaded is what was saved."""

from pathlib import Path
from typing import Any

import torch

from partialfc.runtime import checkpoint, comm, dtensors
from partialfc.runtime.checkpoint import Checkpoints

CPU = torch.device("cpu")


def state_of(ranks: comm.Ranks, rows: int = 7, seed: int = 0) -> dict[str, Any]:
    """Tensors of every kind that a run has: split by rows, replicated, scalars, of several types."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(rows, 3, generator=generator)
    share = -(-rows // ranks.size)
    mine = whole[ranks.rank * share : (ranks.rank + 1) * share].clone()
    return {
        "head": {
            "centers": dtensors.sharded(mine, rows, ranks.group),
            "counts": dtensors.sharded(mine[:, 0].mul(100).to(torch.int32), rows, ranks.group),
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
            assert torch.equal(dtensors.row_range(found[name])[0], dtensors.row_range(value)[0]), name


def save(folder: Path, ranks: comm.Ranks, step: int, keep: int = 2, **kwargs: Any) -> None:
    checkpoints = Checkpoints(folder, keep=keep, ranks=ranks)
    checkpoints.save(step, state_of(ranks, seed=step), {"seed": step}, seconds=1.0, **kwargs)
    outcome = checkpoints.wait()
    assert outcome is not None and outcome.problem is None, outcome


def found_in(folder: Path, ranks: comm.Ranks) -> checkpoint.Found | None:
    return Checkpoints(folder, keep=2, ranks=ranks).to_resume("auto")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
