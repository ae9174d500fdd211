"""Compute precision and deterministic algorithms."""

import os
from contextlib import AbstractContextManager

import torch

_AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Run the backbone in float32, bfloat16 or float16."""
    dtype = _AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def set_deterministic(*, deterministic: bool) -> None:
    """Select the fastest algorithms of a GPU, or deterministic ones.

    Call it before any computation on the GPU. Operations without a deterministic algorithm cause a warning.
    """
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        # Otherwise cuBLAS allocates any amount of memory.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # all memory is written before it is read
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
