"""Devices of a rank."""

import os

import torch

from partialfc.errors import InputError
from partialfc.runtime import platform

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def uses_cuda(device: str) -> bool:
    """Return True if a recipe's `device` (auto, cpu or cuda) selects a GPU on this machine."""
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def gpu_index(local_rank: int) -> int:
    """Return the GPU of a rank: that of its local rank, or the only one that its launcher lets it see.

    Raises:
        InputError: If it cannot see one.
    """
    count = torch.cuda.device_count()
    if local_rank < count:
        return local_rank
    if count == 1 and os.environ.get(_VISIBLE):
        return 0
    raise InputError(f"LOCAL_RANK={local_rank}: expected a GPU for each rank, but {describe_gpus()}")


def describe_gpus() -> str:
    """Return how many GPUs torch sees on this machine, and what hides others."""
    seen = f"torch sees {torch.cuda.device_count()} GPUs on this machine"
    if torch.version.cuda is None:
        return f"{seen}: it was built without CUDA"
    names = os.environ.get(_VISIBLE)
    if names is None:
        return seen + ("" if torch.cuda.device_count() else "; see nvidia-smi for its driver")
    if not names.strip() or names.strip() == "-1":
        return f"{seen}: {_VISIBLE}='{names}' hides all"
    if "MIG" in names:
        return f"{seen}: CUDA uses only the first MIG instance of {_VISIBLE}={names}"
    return f"{seen}: {_VISIBLE}={names}; a number or UUID that does not exist hides those after it"


def explain_hidden_gpus(device: str) -> str | None:
    """Return why `device: auto` means the CPU on a machine with GPUs; None if it does not."""
    installed = platform.installed_gpus()
    if device != "auto" or torch.cuda.is_available() or not installed:
        return None
    return f"device: auto uses the CPU on a machine with {installed} GPUs, since {describe_gpus()}"
