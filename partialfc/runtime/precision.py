"""The precision that a network computes in, and the kind of device that it computes on."""

from contextlib import AbstractContextManager

import torch

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Around a network: it computes in fp32, bf16 or fp16."""
    dtype = _TYPES.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def uses_cuda(device: str) -> bool:
    """Whether a recipe's `device` (auto, cpu or cuda) means a GPU here."""
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())
