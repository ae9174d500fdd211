"""Triton kernels for what stands in a step's way on a GPU: passes over the memory around the products.

The functions of `chunk.py`, `images.py` and `active_rows.py` are the reference: they decide what is right, and are what runs where
there is no Triton, or no GPU.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from partialfc.errors import InputError
from partialfc.head import chunk, images
from partialfc.head.active_rows import ActiveRows
from partialfc.head.images import Derivatives

Choice = Literal["auto", "torch", "triton"]


@dataclass(frozen=True)
class Operations:
    """What a step's passes over the memory are done by."""

    rows: type[ActiveRows]
    exponentials: Callable[..., None]  # as `chunk.exponentials`
    # as those of `images`
    totals: Callable[..., Tensor]
    derivatives: Callable[..., Derivatives]
    embedding_gradients: Callable[..., Tensor]
    add_targets: Callable[..., None]
    # the device's own way to rows of the host's memory; None: it has none
    move_rows: Callable[..., None] | None


def operations_of(choice: Choice, device: torch.device, rows: type[ActiveRows] | None = None) -> Operations:
    """What a recipe's `head.kernels` means on a device. auto: Triton's on a GPU, where Triton is installed.
    rows: those that are worked on without kernels, where there are such.

    InputError where they are asked for and cannot be had.
    """
    runs = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    there = find_spec("triton") is not None
    if choice == "triton" and not (runs and there):
        found = f"device {device.type}" if there else "no package triton"
        raise InputError(
            f"head.kernels: triton wants a GPU and Triton; found {found}; wanted head.kernels: auto"
        )
    if choice == "torch" or not there or (choice == "auto" and device.type != "cuda"):
        return _operations(rows or ActiveRows, chunk.exponentials, images, move_rows=None)
    if rows is None:
        return in_triton()
    return replace(in_triton(), rows=rows, add_targets=images.add_targets)


def in_triton() -> Operations:
    """Those of Triton's kernels; it is imported only where it is used."""
    from partialfc.head.kernels import per_image
    from partialfc.head.kernels.fused_rows import FusedRows
    from partialfc.head.kernels.logits import exponentials
    from partialfc.head.kernels.moving import move_rows

    return _operations(FusedRows, exponentials, per_image, move_rows=move_rows)


def _operations(
    rows: type[ActiveRows],
    exponentials: Callable[..., None],
    per_image: ModuleType,
    *,
    move_rows: Callable[..., None] | None,
) -> Operations:
    return Operations(
        rows=rows,
        exponentials=exponentials,
        totals=per_image.totals,
        derivatives=per_image.derivatives,
        embedding_gradients=per_image.embedding_gradients,
        add_targets=per_image.add_targets,
        move_rows=move_rows,
    )
