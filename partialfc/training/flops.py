"""Floating-point operations of training steps, for throughput in TFLOP/s and MFU."""

from dataclasses import dataclass

import torch

from partialfc.runtime.gpus import find_gpu

_PASSES = 3  # a backward takes twice as many operations as its forward


@dataclass(frozen=True)
class StepFlops:
    """Operations of a step on a rank, without those that are repeated to save memory.

    Args:
        forward: Operations of the backbone's forward on one image.
        images: Images of this rank.
        batch: Images of all ranks.
        width: Components of a class's centers.
    """

    forward: int
    images: int
    batch: int
    width: int

    def __call__(self, num_active: int, *, frozen: bool) -> int:
        """Return the operations of a step with this number of active classes, with a frozen backbone or not."""
        backbone = (1 if frozen else _PASSES) * self.forward * self.images
        return backbone + _PASSES * 2 * self.batch * num_active * self.width


def peak_flops(precision: str, device: torch.device) -> float | None:
    """Return the operations per second of this GPU by its vendor; None if it is unknown, or no GPU."""
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        return None
    if precision != "float32":
        return gpu.float16
    return gpu.tf32 if torch.backends.cudnn.allow_tf32 else gpu.float32
