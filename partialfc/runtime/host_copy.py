"""Numbers on their way from the device, which goes on with what was queued after them."""

import torch
from torch import Tensor


class HostCopy:
    """A copy on the host of a device's tensor as it is when this is made."""

    def __init__(self, tensor: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        if not tensor.is_cuda:
            self._host_tensor = tensor.clone()
            return
        self._host_tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host_tensor.copy_(tensor, non_blocking=True)
        self._copied = torch.cuda.current_stream(tensor.device).record_event()

    def wait(self) -> Tensor:
        """The copy, once it is there; waits for nothing that was queued later."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host_tensor
