"""Validation of the arguments of a head, and the loss scale that a GradScaler gives."""

from typing import NamedTuple

import torch
from torch import Tensor

from partialfc.config.types import Settings


class Scaling(NamedTuple):
    """The loss scale of a step, and whether the step is taken."""

    finite: Tensor | None  # bool scalar on the device; None: the step is taken
    loss_scale: float | Tensor


def check_arguments(num_classes: int, embedding_size: int, loss: object, backbone_gradients: str) -> None:
    """Raise TypeError or ValueError for arguments of `PartialFC` that are out of range."""
    if not isinstance(loss, Settings):
        raise TypeError(
            f"loss: expected the settings of a loss, such as partialfc.config.ArcFace(), got {loss!r:.60}"
        )
    if min(num_classes, embedding_size) < 1 or backbone_gradients not in ("sum", "mean"):
        raise ValueError(
            f"got {num_classes} classes, embedding_size {embedding_size}, backbone_gradients "
            f"{backbone_gradients!r}; expected positive numbers, and 'sum' or 'mean'"
        )


def check_labels(labels: object, expected: str) -> None:
    """Raise TypeError or ValueError unless labels are integers in one dimension; `expected` completes the message."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels: expected a tensor of integers {expected}, got {type(labels).__name__}")
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(f"labels: expected integers {expected}, got {describe_tensor(labels)}")


def check_embeddings(
    embeddings: Tensor, step: int, *, width: int, batch: int, world_size: int, device: torch.device
) -> None:
    """Raise ValueError unless the embeddings are this rank's `[b, D]`, floats on the head's device.

    Args:
        embeddings: Argument of `PartialFC.forward`.
        step: Index of the step, for the message.
        width: D.
        batch: Number of labels that the step was prepared with, B.
        world_size: Number of ranks.
        device: Device of the head.

    Raises:
        ValueError: If they are not.
    """
    local = batch // world_size
    good = embeddings.is_floating_point() and embeddings.device == device
    if not good or tuple(embeddings.shape) != (local, width) or batch % world_size:
        raise ValueError(
            f"embeddings: expected floats [{local}, {width}] on {device}, got {describe_tensor(embeddings)}; step {step} was "
            f"prepared with {batch} labels for {world_size} rank(s), and labels are those of the global batch (see "
            "gather_labels())"
        )


def check_teacher(
    embeddings: Tensor | None, shape: tuple[int, int], device: torch.device, *, follow: bool
) -> None:
    """Raise ValueError unless the embeddings of a teacher are given exactly if the centers follow it."""
    if embeddings is None and follow:
        raise ValueError("teacher: expected embeddings [b, D], which the class centers follow, got None")
    if embeddings is not None and not follow:
        raise ValueError("teacher: expected None without optim=FollowTeacher(), got embeddings")
    if embeddings is None:
        return
    if not embeddings.is_floating_point() or embeddings.device != device or tuple(embeddings.shape) != shape:
        raise ValueError(
            f"teacher: expected floats {list(shape)} on {device}, got {describe_tensor(embeddings)}"
        )


def read_scaling(
    scaler: torch.amp.GradScaler | None,
    finite: Tensor | None,
    loss_scale: float | Tensor,
    device: torch.device,
) -> Scaling:
    """Return the scaling of a step from a GradScaler, or from the two values it replaces, without a host sync.

    Raises:
        ValueError: The scaler and the values are both given, or a scale without `finite`: centers would move in a step
            that the backbone skips.
        RuntimeError: The scaler has examined no gradients of this step.
    """
    scaled = isinstance(loss_scale, Tensor) or loss_scale != 1.0
    if scaler is None:
        if scaled and finite is None:
            raise ValueError(
                "update(loss_scale=): expected finite= as well, else centers move in steps that GradScaler skips; "
                "pass scaler=scaler instead of both"
            )
        return Scaling(finite, loss_scale)
    if scaled or finite is not None:
        raise ValueError(
            "update(scaler=): expected neither finite= nor loss_scale=, which are read from the scaler"
        )
    if not scaler.is_enabled():
        return Scaling(None, 1.0)
    # GradScaler has no public flag; its own update() reads the same.
    found = [
        it.to(device, non_blocking=True)
        for state in scaler._per_optimizer_states.values()
        for it in state["found_inf_per_device"].values()
    ]
    scale = scaler._get_scale_async()
    if not found or scale is None:
        raise RuntimeError(
            "update(scaler=): the scaler has examined no gradients of this step; call head.update() after "
            "scaler.step(optimizer) and before scaler.update()"
        )
    return Scaling(torch.stack(found).sum() == 0, scale.to(device, non_blocking=True))


def describe_tensor(tensor: Tensor) -> str:
    """Return dtype, shape and device of a tensor, for a message."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
