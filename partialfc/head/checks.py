"""What a head refuses of its arguments: an error says what was found, and what is wanted."""

import torch
from torch import Tensor


def check_arguments(num_classes: int, embedding_size: int, backbone_gradients: str) -> None:
    """Of the head itself."""
    if min(num_classes, embedding_size) < 1 or backbone_gradients not in ("sum", "mean"):
        raise ValueError(
            f"found {num_classes} classes, embedding_size {embedding_size}, backbone_gradients "
            f"{backbone_gradients!r}; wanted numbers above 0, and 'sum' or 'mean'"
        )


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
