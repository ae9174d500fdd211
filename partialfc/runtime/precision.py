"""How and on what kind of device a network computes: precision, algorithms."""

import os
from contextlib import AbstractContextManager

import torch

_AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Around a network: it computes in float32, bfloat16 or float16."""
    dtype = _AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def set_deterministic(*, deterministic: bool) -> None:
    """How this process chooses among a GPU's algorithms: the fastest that it finds, or those whose bits do not vary.

    Before anything is computed there. An operation that has no such algorithm is warned of.
    """
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS takes what memory it finds
        torch.use_deterministic_algorithms(True, warn_only=True)
        # all memory is written before it is read
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def uses_cuda(device: str) -> bool:
    """Whether a recipe's `device` (auto, cpu or cuda) means a GPU here."""
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())
