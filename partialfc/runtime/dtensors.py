"""Row-sharded tensors as DTensors, which torch.distributed.checkpoint saves and loads. No collectives.

torch.distributed.tensor takes half as long to import as the rest of torch. It is therefore imported only if
needed.
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
    """Import torch.distributed.tensor now rather than in the middle of a run."""
    import_module(_MODULE)


def as_dtensor(rows: Tensor, num_rows: int, group: OptionalGroup) -> Tensor:
    """Return this rank's rows `[n, ...]` as its shard of a DTensor `[num_rows, ...]` split by Shard(0).

    The result shares memory. Without a process group, `local` is returned unchanged.
    """
    if group is None:
        return rows
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = DeviceMesh.from_group(group, rows.device.type)
    shape = torch.Size([num_rows, *rows.shape[1:]])
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=rows.stride())


def local_rows(value: Any) -> Tensor | None:
    """Return this rank's rows of a DTensor that is split by Shard(0); None for any other tensor."""
    found = _as_row_sharded(value)
    return None if found is None else found.to_local()


def local_rows_and_offset(tensor: Tensor) -> tuple[Tensor, int]:
    """Return this rank's rows and the global index of the first one; all rows of a tensor that is not sharded."""
    found = _as_row_sharded(tensor)
    if found is None:
        return tensor, 0
    share = -(-found.shape[0] // found.device_mesh.size())
    return found.to_local(), min(found.shape[0], found.device_mesh.get_local_rank() * share)


def _as_row_sharded(value: Any) -> "DTensor | None":
    """Return the tensor if it is a DTensor that is split by Shard(0), else None."""
    if _MODULE not in sys.modules:  # then there is no DTensor
        return None
    from torch.distributed.tensor import DTensor, Shard

    return value if isinstance(value, DTensor) and tuple(value.placements) == (Shard(0),) else None
