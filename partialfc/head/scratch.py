"""Memory of the device: what is used again in every step, and what comes to it from the host."""

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The same numbers there; the host does not wait for the device."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


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
            self._kept[name] = torch.empty(
                size + size // 16, dtype=dtype, device=self._device, pin_memory=self._pinned
            )
        return self._kept[name][:size].view(shape)
