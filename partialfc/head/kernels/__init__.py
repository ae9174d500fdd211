"""Operations of a step apart from its matrix products: in plain torch, or with Triton kernels on a GPU.

`torch_ops` and `torch_centers` are the reference. They also run without Triton, without a GPU, with several centers per
class, and with centers that are not normalized.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

from torch import Tensor, device

from partialfc.errors import InputError
from partialfc.head.kernels import torch_centers, torch_ops, torch_sampling
from partialfc.head.kernels.torch_centers import NormalizedCenters, TargetCenters
from partialfc.head.kernels.torch_ops import SoftmaxGradient

Choice = Literal["auto", "torch", "triton"]  # `head.kernels` of a recipe


@dataclass(frozen=True)
class KernelBackend:
    """Operations of a step, with the signatures of the functions in the torch modules."""

    normalize_centers: Callable[..., NormalizedCenters]
    target_centers: Callable[..., TargetCenters]
    exp_logits: Callable[..., None]
    softmax_totals: Callable[..., Tensor]
    softmax_gradient: Callable[..., SoftmaxGradient]
    embedding_gradients_: Callable[..., Tensor]
    add_target_gradients_: Callable[..., None]
    step_centers: Callable[..., None]
    sample_rows: Callable[..., tuple[Tensor, Tensor | None]]
    # Copies between GPU and pinned host memory; None without such a kernel.
    copy_rows: Callable[..., None] | None


def build_kernels(choice: Choice, device: device, *, one_direction: bool) -> KernelBackend:
    """Return the operations that `head.kernels` selects; "auto" selects Triton on a GPU if it is installed.

    Args:
        choice: Value of the recipe.
        device: Device of the head.
        one_direction: A class has one normalized center, as all Triton kernels require.

    Raises:
        InputError: "triton" is selected and not available.
    """
    runs = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    there = find_spec("triton") is not None
    if choice == "triton" and not (runs and there):
        found = f"device {device.type}" if there else "no package triton"
        raise InputError(f"head.kernels: triton requires a GPU and Triton, got {found}; set it to auto")
    if choice == "torch" or not there or (choice == "auto" and device.type != "cuda"):
        return torch_backend()
    if one_direction:
        return triton_backend()
    return replace(
        triton_backend(),
        normalize_centers=torch_centers.normalize_centers,
        target_centers=torch_centers.target_centers,
        step_centers=torch_centers.step_centers,
        add_target_gradients_=torch_ops.add_target_gradients_,
    )


def torch_backend() -> KernelBackend:
    """Return the reference operations."""
    return KernelBackend(
        normalize_centers=torch_centers.normalize_centers,
        target_centers=torch_centers.target_centers,
        exp_logits=torch_ops.exp_logits,
        softmax_totals=torch_ops.softmax_totals,
        softmax_gradient=torch_ops.softmax_gradient,
        embedding_gradients_=torch_ops.embedding_gradients_,
        add_target_gradients_=torch_ops.add_target_gradients_,
        step_centers=torch_centers.step_centers,
        sample_rows=torch_sampling.sample_rows,
        copy_rows=None,
    )


def triton_backend() -> KernelBackend:
    """Return the operations with Triton kernels; Triton is imported here only."""
    from partialfc.head.kernels import (
        triton_centers,
        triton_images,
        triton_logits,
        triton_rows,
        triton_sampling,
    )

    return KernelBackend(
        normalize_centers=triton_centers.normalize_centers,
        target_centers=triton_centers.target_centers,
        exp_logits=triton_logits.exp_logits,
        softmax_totals=triton_images.softmax_totals,
        softmax_gradient=triton_images.softmax_gradient,
        embedding_gradients_=triton_images.embedding_gradients_,
        add_target_gradients_=triton_images.add_target_gradients_,
        step_centers=triton_centers.step_centers,
        sample_rows=triton_sampling.sample_rows,
        copy_rows=triton_rows.copy_rows,
    )
