"""Memory of the device: what is used again in every step, and what comes to it from the host."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNED = 16  # bytes: where kernels read whole words


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The same numbers there; the host does not wait for the device."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else sent(tensor.pin_memory(), device)


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory of the host with undefined content, which a GPU copies to and from while the host goes on."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def sent(source: Tensor, device: torch.device) -> Tensor:
    """A copy on a GPU of what is pinned, complete for what follows on the current stream; the host does not wait."""
    return source.to(device, non_blocking=True)


class Sender:
    """Brings small tensors of the host to a device: in one copy, from one pinned buffer, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, tensors: Sequence[Tensor]) -> "Sending":
        """Begin to bring them. On a CPU they are there."""
        if self._stream is None:
            return Sending(list(tensors), None, None)
        places, size = [], 0
        for tensor in tensors:
            places.append(size)
            size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        buffer = pinned((size,), torch.uint8)
        words = buffer.numpy()  # whose calls cost the host less
        for place, tensor in zip(places, tensors, strict=True):
            words[place : place + tensor.nbytes] = tensor.numpy().view(np.uint8).reshape(-1)
        with torch.cuda.stream(self._stream):
            there = sent(buffer, self._device)
            event = self._stream.record_event()
        parts = [_part(there, place, tensor) for place, tensor in zip(places, tensors, strict=True)]
        return Sending(parts, there, event)


class Sending:
    """Tensors on their way to a device."""

    def __init__(self, parts: list[Tensor], buffer: Tensor | None, event: torch.cuda.Event | None) -> None:
        self._parts, self._buffer, self._event = parts, buffer, event

    def arrived(self) -> list[Tensor]:
        """The same tensors there, complete for what follows on the current stream."""
        if self._buffer is not None and self._event is not None:
            stream = torch.cuda.current_stream(self._buffer.device)
            stream.wait_event(self._event)
            self._buffer.record_stream(stream)
        return self._parts


def _part(buffer: Tensor, place: int, like: Tensor) -> Tensor:
    """The bytes from `place` on, as a tensor of the kind of another."""
    return buffer[place : place + like.nbytes].view(like.dtype).view(like.shape)


class ScratchMemory:
    """Named tensors of one device, used again in every step: fresh memory costs more than what is written to it."""

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self._device, self._pinned = device, pinned
        self._kept: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with undefined content; what was got before under this name is lost. One dtype a name."""
        size = math.prod(shape)
        if name not in self._kept or self._kept[name].numel() < size:
            self._kept.pop(name, None)
            # A sixteenth more: the number of active classes changes a little from step to step.
            longer = (size + size // 16,)
            self._kept[name] = (
                pinned(longer, dtype)
                if self._pinned
                else torch.empty(longer, dtype=dtype, device=self._device)
            )
        return self._kept[name][:size].view(shape)
