"""Asynchronous device-to-host copies."""

import torch
from torch import Tensor


class HostCopy:
    """Asynchronous host copy of a device tensor, taken at construction."""

    def __init__(self, tensor: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        if not tensor.is_cuda:
            self._host_tensor = tensor.clone()
            return
        self._host_tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host_tensor.copy_(tensor, non_blocking=True)
        self._copied = torch.cuda.current_stream(tensor.device).record_event()

    def wait(self) -> Tensor:
        """Return the copy once it is complete, without waiting for work that was queued later."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host_tensor
