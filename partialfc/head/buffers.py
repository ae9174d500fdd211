"""Memory that is used again in every step: fresh memory costs more than what is written to it."""

import math

import torch
from torch import Tensor


class Buffers:
    """Named tensors of one device."""

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self._device, self._pinned = device, pinned
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with undefined content; what was taken before under this name is lost. One dtype a name."""
        size = math.prod(shape)
        if name not in self._kept or self._kept[name].numel() < size:
            self._kept.pop(name, None)
            # A sixteenth more: the number of classes at work changes a little from step to step.
            self._kept[name] = torch.empty(
                size + size // 16, dtype=dtype, device=self._device, pin_memory=self._pinned
            )
        return self._kept[name][:size].view(shape)
