"""A copy of what a rank saves, which a thread can write while the next steps change the tensors.

Of a tensor that is split by rows every rank saves its own; those that are the same on every rank are dealt out, so that
each rank writes about as much.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from partialfc.runtime import dtensors
from partialfc.runtime.checkpoint.safetensors_io import StreamedRows, TensorSource, dtype_name
from partialfc.runtime.host_memory import pinned_exactly

_LARGE = 1 << 20  # bytes from which a tensor gets pinned pages of its own

NestedState = Mapping[str, Any]  # of tensors, maybe nested


def flatten_state(state: NestedState, prefix: str = "") -> dict[str, Tensor]:
    """The tensors by their dotted names. TypeError on anything else, which no file of tensors can hold."""
    flat: dict[str, Tensor] = {}
    for key, value in state.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten_state(value, f"{name}.")
        elif isinstance(value, Tensor):
            flat[name] = value
        else:
            raise TypeError(f"{name}: found {type(value).__name__}, wanted a tensor")
    return flat


class StateSnapshot:
    """Kept in the same memory of the host from one save to the next; pinned where the tensors are a GPU's."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def copy_state(
        self, state: NestedState, rank: int, world_size: int, streamed: Mapping[str, StreamedRows]
    ) -> tuple[dict[str, TensorSource], dict[str, Any]]:
        """Start to copy this rank's part of the state; `wait` returns when it is there. What is in `streamed` is not copied.

        Returns the copies, and what is streamed, by name; and for every name of the whole state its type, its shape, and
        which rows of it are among them: the first, and the one after the last; None where none are.
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
        """Return when all copies are there; from any thread."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = _allocate(tensor)
            self._buffers[name] = buffer
        return buffer.copy_(tensor, non_blocking=True)


def _allocate(tensor: Tensor) -> Tensor:
    """Return host memory for a copy of a tensor: pinned for one on a GPU, and of its exact size where it is large."""
    if tensor.is_cuda and tensor.nbytes >= _LARGE:
        return pinned_exactly(tuple(tensor.shape), tensor.dtype)
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)


def _assign_owners(tensors: Mapping[str, Tensor], world_size: int) -> dict[str, int]:
    """Which rank saves which: the largest first, each to the rank that has least."""
    load, owners = [0] * world_size, {}
    for name in sorted(tensors, key=lambda name: (-tensors[name].nbytes, name)):
        owners[name] = load.index(min(load))
        load[owners[name]] += tensors[name].nbytes
    return owners
