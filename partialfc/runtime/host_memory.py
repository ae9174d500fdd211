"""Pinned host memory, and the threads that use a GPU."""

import math
import mmap

import torch
from torch import Tensor

_registered: list[mmap.mmap] = []  # registered with CUDA, which does not notice an unmapping


def pinned_exactly(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return pinned zeros of exactly the required size, which stay allocated until the process exits.

    PyTorch's own allocator rounds up to the next power of two.

    Raises:
        OSError: If the system has not enough memory.
    """
    size = math.prod(shape) * dtype.itemsize
    _registered.append(mmap.mmap(-1, max(1, size)))
    tensor = torch.frombuffer(_registered[-1], dtype=torch.uint8)
    code = int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), len(tensor), 0))
    if code:
        raise OSError(f"CUDA error {code} when pinning {size:,} bytes of host memory")
    return tensor[:size].view(dtype).view(shape)


def bind_thread(device: torch.device) -> None:
    """Make a GPU the current device of the calling thread.

    CUDA keeps the current device per thread. A new thread starts at GPU 0, and its first call creates a
    context of half a gigabyte there.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
