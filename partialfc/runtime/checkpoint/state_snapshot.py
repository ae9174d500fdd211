"""Host copies of a rank's state, which a thread writes while later steps change the tensors.

Every rank saves its own rows of a sharded tensor. Replicated tensors are distributed over the ranks so that
each rank writes about the same amount.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from partialfc.runtime import dtensors
from partialfc.runtime.checkpoint.safetensors_io import StreamedRows, TensorSource, dtype_name
from partialfc.runtime.host_memory import pinned_exactly

_LARGE = 1 << 20  # bytes from which a tensor gets its own pinned pages

NestedState = Mapping[str, Any]  # tensors, possibly nested


def flatten_state(state: NestedState, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors by dotted name.

    Raises:
        TypeError: If the state contains anything but tensors.
    """
    flat: dict[str, Tensor] = {}
    for key, value in state.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten_state(value, f"{name}.")
        elif isinstance(value, Tensor):
            flat[name] = value
        else:
            raise TypeError(f"{name}: found {type(value).__name__}, expected a tensor")
    return flat


class StateSnapshot:
    """Host memory of the copies, reused from save to save; pinned if the tensors are on a GPU."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def copy_state(
        self, state: NestedState, rank: int, world_size: int, streamed: Mapping[str, StreamedRows]
    ) -> tuple[dict[str, TensorSource], dict[str, Any]]:
        """Start to copy this rank's part of the state; `wait` returns once it is complete.

        Tensors in `streamed` are not copied.

        Returns:
            Copies and streamed tensors by name. For every name of the full state: its dtype, its shape,
                and the range of its rows that this rank saves, or None.
        """
        copies: dict[str, TensorSource] = {}
        described: dict[str, dict[str, Any]] = {}
        on_gpu = False
        flat = flatten_state(state)
        whole = {name: it for name, it in flat.items() if dtensors.local_rows(it) is None}
        owners = _assign_owners(whole, world_size)
        for name, tensor in flat.items():
            rows, first = dtensors.local_rows_and_offset(tensor)
            described[name] = {"dtype": dtype_name(tensor), "shape": list(tensor.shape), "rows": None}
            if owners.get(name, rank) == rank:
                copies[name] = streamed.get(name) or self._copy(name, rows.detach())
                described[name]["rows"] = first, first + (len(rows) if rows.dim() else 1)
                on_gpu |= rows.is_cuda and name not in streamed
        self._copied = torch.cuda.current_stream().record_event() if on_gpu else None
        return copies, described

    def wait(self) -> None:
        """Wait until all copies are complete; callable from any thread."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = _allocate(tensor)
            self._buffers[name] = buffer
        return buffer.copy_(tensor, non_blocking=True)


def _allocate(tensor: Tensor) -> Tensor:
    """Return host memory for a copy of a tensor: pinned for a GPU tensor, and of exact size if it is large."""
    if tensor.is_cuda and tensor.nbytes >= _LARGE:
        return pinned_exactly(tuple(tensor.shape), tensor.dtype)
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _assign_owners(tensors: Mapping[str, Tensor], world_size: int) -> dict[str, int]:
    """Assign each tensor to a rank, largest first, always to the least loaded rank."""
    load, owners = [0] * world_size, {}
    for name in sorted(tensors, key=lambda name: (-tensors[name].nbytes, name)):
        owners[name] = load.index(min(load))
        load[owners[name]] += tensors[name].nbytes
    return owners
