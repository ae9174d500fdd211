"""Tensors that are split over the ranks by rows, as the DTensors that torch.distributed.checkpoint saves and loads. No
collectives.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from partialfc.runtime.comm import Group


def sharded(rows: Tensor, num_rows: int, group: Group) -> Tensor:
    """This rank's rows [n, ...] as its part of a DTensor [num_rows, ...] split by Shard(0); shares memory.

    Without a process group they are all rows, as they are.
    """
    if group is None:
        return rows
    mesh = DeviceMesh.from_group(group, rows.device.type)
    shape = torch.Size([num_rows, *rows.shape[1:]])
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=rows.stride())


def local_rows(value: Any) -> Tensor | None:
    """This rank's rows of a DTensor that is split by Shard(0); None for what is no such tensor."""
    if not isinstance(value, DTensor) or tuple(value.placements) != (Shard(0),):
        return None
    return value.to_local()


def row_range(tensor: Tensor) -> tuple[Tensor, int]:
    """This rank's rows of a tensor, and the number of the first: of a DTensor split by Shard(0), else all of them."""
    local = local_rows(tensor)
    if local is None:
        return tensor, 0
    assert isinstance(tensor, DTensor)
    share = -(-tensor.shape[0] // tensor.device_mesh.size())
    return local, min(tensor.shape[0], tensor.device_mesh.get_local_rank() * share)
