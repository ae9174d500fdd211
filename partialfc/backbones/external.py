"""External backbones: user-defined modules and timm models."""

import importlib
import sys
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from partialfc.backbones.projection import Projection
from partialfc.errors import InputError
from partialfc.runtime.error_messages import format_error


class ExternalBackbone(nn.Module):
    """External network: float images `[b, 3, H, W]` in [-1, 1] -> embeddings `[b, D]`, not normalized."""

    input_size: int


def build_custom_backbone(target: str, kwargs: dict[str, Any]) -> nn.Module:
    """Import the class `target`, `module:Class`, and construct it with `kwargs`.

    Modules are searched in the environment, then in the current folder. Callers verify that the target comes
    from a recipe or a command line, not from a file.

    Returns:
        The network.

    Raises:
        InputError: If the class does not exist, is not an `nn.Module`, or rejects the arguments.
    """
    module_name, _, name = target.partition(":")
    _add_current_folder()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"backbone.target: {target}: {error}; expected a module of the environment or of {Path.cwd()}"
        ) from None
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise InputError(f"backbone.target: {target}: no class of {module_name} that is a torch.nn.Module")
    try:
        return found(**kwargs)
    except TypeError as error:
        raise InputError(f"backbone.kwargs: {error}") from error


def _add_current_folder() -> None:
    """Append the current folder to `sys.path`, so that every command and every rank finds the same modules."""
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()


def build_timm_backbone(
    model_name: str,
    arguments: dict[str, Any],
    input_size: int,
    embedding_size: int,
    dropout: float,
    pretrained: bool,
) -> nn.Module:
    """Construct a timm model without classifier, with the usual embedding layer: dropout, projection, BatchNorm.

    Returns:
        The network.

    Raises:
        InputError: If timm is not installed, does not have the model, or the model rejects the arguments.
    """
    try:
        import timm
    except ModuleNotFoundError:
        raise InputError(
            "backbone.name: timm: missing package timm; install it with: pip install --no-deps timm, and a "
            "torchvision of the same build as torch"
        ) from None
    if model_name not in timm.list_models():
        near = ", ".join(timm.list_models(f"*{model_name.split('_')[0]}*")[:8])
        raise InputError(
            f"backbone.model: timm has no {model_name!r}; expected one of timm.list_models(), such as {near}"
        )
    try:
        trunk = timm.create_model(
            model_name, pretrained=pretrained, num_classes=0, img_size=input_size, **arguments
        )
    except TypeError:  # a network for images of any size
        try:
            trunk = timm.create_model(model_name, pretrained=pretrained, num_classes=0, **arguments)
        except TypeError as error:
            raise InputError(f"backbone.kwargs: {format_error(error)}") from None
    width: Any = getattr(trunk, "head_hidden_size", None) or trunk.num_features  # input of the classifier
    norm = nn.BatchNorm1d(embedding_size)
    return nn.Sequential(trunk, nn.Dropout(dropout), Projection(width, embedding_size), norm)


def validate_output_shape(
    network: nn.Module, input_size: int, embedding_size: int, location: str
) -> ExternalBackbone:
    """Return the network after a forward pass of two images `[2, 3, input_size, input_size]`.

    Raises:
        InputError: If the output is not [2, embedding_size]; the message starts with `location`.
    """
    taken = cast(ExternalBackbone, network)
    taken.input_size = input_size
    images = torch.zeros(2, 3, input_size, input_size)
    if images.is_meta:  # built on the meta device to compare shapes: no forward pass
        return taken
    network.eval()
    try:
        with torch.no_grad():
            found = network(images)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{location}: takes no images {list(images.shape)}: {why}") from None
    network.train()
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != [2, embedding_size]:
        raise InputError(
            f"{location}: gives {shape} for images {list(images.shape)}, expected [2, {embedding_size}]"
        )
    return taken
