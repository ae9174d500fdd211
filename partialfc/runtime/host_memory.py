"""Host memory that a GPU copies to and from while the host goes on, and the threads that touch a GPU."""

import math
import mmap

import torch
from torch import Tensor

_registered: list[mmap.mmap] = []  # with CUDA, which would not notice that they are unmapped


def pinned_exactly(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return pinned zeros that take no byte more than they need, until the process ends.

    PyTorch's own allocator takes the next power of two.

    Raises:
        OSError: The system has no room.
    """
    size = math.prod(shape) * dtype.itemsize
    _registered.append(mmap.mmap(-1, max(1, size)))
    tensor = torch.frombuffer(_registered[-1], dtype=torch.uint8)
    code = int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), len(tensor), 0))
    if code:
        raise OSError(f"CUDA error {code} when pinning {size:,} bytes of host memory")
    return tensor[:size].view(dtype).view(shape)


def bind_thread(device: torch.device) -> None:
    """Make a GPU the current one of the calling thread.

    CUDA keeps the current device per thread. A new thread starts at GPU 0, and its first call creates a context of half
    a gigabyte there.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
