"""Reused buffers, and copies from the host to the device."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16  # bytes, for vectorized loads


def copy_to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return a copy of an array on a device, without a host sync."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else copy_pinned(tensor.pin_memory(), device)


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized tensor in pinned host memory."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def copy_pinned(source: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a pinned tensor on a GPU, ordered on the current stream, without a host sync."""
    return source.to(device, non_blocking=True)


class DeviceUploader:
    """Copier of small host tensors to a device: one copy, from one pinned buffer, on its own stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, tensors: Sequence[Tensor]) -> "PendingUpload":
        """Start the copy; on a CPU the tensors are used as they are."""
        if self._stream is None:
            return PendingUpload(list(tensors), None, None)
        offsets, size = [], 0
        for tensor in tensors:
            offsets.append(size)
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        buffer = pinned((size,), torch.uint8)
        words = buffer.numpy()  # numpy calls cost the host less than torch calls
        for offset, tensor in zip(offsets, tensors, strict=True):
            words[offset : offset + tensor.nbytes] = tensor.numpy().reshape(-1).view(np.uint8)
        with torch.cuda.stream(self._stream):
            copied = copy_pinned(buffer, self._device)
            event = self._stream.record_event()
        parts = [_view_at(copied, offset, tensor) for offset, tensor in zip(offsets, tensors, strict=True)]
        return PendingUpload(parts, copied, event)


class PendingUpload:
    """Tensors that are being copied to a device."""

    def __init__(self, parts: list[Tensor], buffer: Tensor | None, event: torch.cuda.Event | None) -> None:
        self._parts, self._buffer, self._event = parts, buffer, event

    def wait(self) -> list[Tensor]:
        """Return the tensors on the device; the current stream waits for the copy, the host does not."""
        if self._buffer is not None and self._event is not None:
            stream = torch.cuda.current_stream(self._buffer.device)
            stream.wait_event(self._event)
            self._buffer.record_stream(stream)
        return self._parts


def _view_at(buffer: Tensor, offset: int, like: Tensor) -> Tensor:
    """Return the bytes from an offset on, with the dtype and shape of another tensor."""
    return buffer[offset : offset + like.nbytes].view(like.dtype).view(like.shape)


class BufferPool:
    """Pool of named tensors that all steps reuse, since new memory costs more than the writes to it."""

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self._device, self._pinned = device, pinned
        self._tensors: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialized tensor, which overwrites the previous tensor of this name; one dtype per name."""
        size = math.prod(shape)
        if name not in self._tensors or self._tensors[name].numel() < size:
            self._tensors.pop(name, None)
            # A sixteenth more, since the number of active classes varies from step to step.
            longer = (size + size // 16,)
            self._tensors[name] = (
                pinned(longer, dtype)
                if self._pinned
                else torch.empty(longer, dtype=dtype, device=self._device)
            )
        return self._tensors[name][:size].view(shape)
