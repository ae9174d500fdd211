"""How Triton kernels are launched."""

import os
from contextlib import nullcontext
from typing import Any

import torch
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}  # that are computed in

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # on the host, for tests


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its first argument, whichever is the current one; nobody waits for it."""
    here = INTERPRETED or arguments[0].device.index == torch.cuda.current_device()
    with nullcontext() if here else torch.cuda.device(arguments[0].device):
        kernel[grid](*arguments, **constants)
