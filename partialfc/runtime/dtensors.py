"""Tensors that are split over the ranks by rows, as the DTensors that torch.distributed.checkpoint saves and loads. No
collectives.

torch's module of DTensors takes as long to import as half of the rest of torch: what reads weights alone does without.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from partialfc.runtime.comm import OptionalGroup

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_MODULE = "torch.distributed.tensor"


def preload() -> None:
    """Import what the others would import when they are called first, in the middle of a run."""
    import_module(_MODULE)


def as_dtensor(rows: Tensor, num_rows: int, group: OptionalGroup) -> Tensor:
    """This rank's rows [n, ...] as its part of a DTensor [num_rows, ...] split by Shard(0); shares memory.

    Without a process group they are all rows, as they are.
    """
    if group is None:
        return rows
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = DeviceMesh.from_group(group, rows.device.type)
    shape = torch.Size([num_rows, *rows.shape[1:]])
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=rows.stride())


def local_rows(value: Any) -> Tensor | None:
    """This rank's rows of a DTensor that is split by Shard(0); None for what is no such tensor."""
    found = _as_row_sharded(value)
    return None if found is None else found.to_local()


def local_rows_and_offset(tensor: Tensor) -> tuple[Tensor, int]:
    """This rank's rows of a tensor, and the number of the first: of a DTensor split by Shard(0), else all of them."""
    found = _as_row_sharded(tensor)
    if found is None:
        return tensor, 0
    share = -(-found.shape[0] // found.device_mesh.size())
    return found.to_local(), min(found.shape[0], found.device_mesh.get_local_rank() * share)


def _as_row_sharded(value: Any) -> "DTensor | None":
    """The same, where it is a DTensor that is split by Shard(0)."""
    if _MODULE not in sys.modules:  # so it is none
        return None
    from torch.distributed.tensor import DTensor, Shard

    return value if isinstance(value, DTensor) and tuple(value.placements) == (Shard(0),) else None
