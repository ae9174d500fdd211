"""What a head refuses of its arguments: an error says what was found, and what is wanted."""

import torch
from torch import Tensor

from partialfc.config.types import Settings


def check_arguments(num_classes: int, embedding_size: int, margin: object, backbone_gradients: str) -> None:
    """Raise TypeError or ValueError if a head cannot be made of these."""
    if not isinstance(margin, Settings):
        raise TypeError(
            f"margin: expected the settings of a loss, such as partialfc.config.ArcFace(), got {margin!r:.60}"
        )
    if min(num_classes, embedding_size) < 1 or backbone_gradients not in ("sum", "mean"):
        raise ValueError(
            f"found {num_classes} classes, embedding_size {embedding_size}, backbone_gradients "
            f"{backbone_gradients!r}; wanted numbers above 0, and 'sum' or 'mean'"
        )


def check_labels(labels: object, wanted: str) -> None:
    """Raise TypeError or ValueError if labels are no integers in one dimension. wanted: whose they are."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels: expected a tensor of integers {wanted}, got {type(labels).__name__}")
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(f"labels: found {described(labels)}; wanted integers {wanted}")


def check_embeddings(
    embeddings: Tensor, step: int, *, width: int, batch: int, world_size: int, device: torch.device
) -> None:
    """Of a forward: this rank's [b, D], on the head's device. batch: B; step: its number, for the message."""
    local = batch // world_size
    good = embeddings.is_floating_point() and embeddings.device == device
    if not good or tuple(embeddings.shape) != (local, width) or batch % world_size:
        raise ValueError(
            f"embeddings: found {described(embeddings)}; wanted floats [{local}, {width}] on {device}, since step "
            f"{step} was prepared with {batch} labels for {world_size} rank(s); labels are those of the global "
            "batch, see gather_labels()"
        )


def described(tensor: Tensor) -> str:
    """What kind of tensor it is, for a message."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
