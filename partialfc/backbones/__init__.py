"""Backbones: networks that map aligned faces to embeddings."""

import functools
from typing import TypedDict

import msgspec
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from partialfc import config
from partialfc.backbones.external import (
    ExternalBackbone,
    build_custom_backbone,
    build_timm_backbone,
    validate_output_shape,
)
from partialfc.backbones.iresnet import IResNet
from partialfc.backbones.mobilefacenet import MobileFaceNet
from partialfc.backbones.vit import VisionTransformer
from partialfc.errors import InputError

__all__ = ["Backbone", "build_backbone", "inference_config", "move_to_device"]

Backbone = IResNet | MobileFaceNet | VisionTransformer | ExternalBackbone

_IRESNET_WIDTH = 64
_IRESNET_DEPTHS: dict[type[config.IResNetConfig], tuple[int, ...]] = {  # blocks per stage
    config.IResNet18: (2, 2, 2, 2),
    config.IResNet34: (3, 4, 6, 3),
    config.IResNet50: (3, 4, 14, 3),
    config.IResNet100: (3, 13, 30, 3),
    config.IResNet200: (6, 26, 60, 6),
    config.IResNet2060: (3, 128, 896, 3),
}
_VIT_SIZES: dict[type[config.ViT], tuple[int, int]] = {  # width and depth
    config.ViTTiny: (256, 12),
    config.ViTSmall: (512, 12),
    config.ViTBase: (512, 24),
    config.ViTLarge: (768, 24),
}


def build_backbone(settings: config.AnyBackbone) -> Backbone:
    """Build a network: float images `[b, 3, H, W]` in [-1, 1] -> float32 embeddings `[b, D]`, not normalized.

    Its `input_size` is the H = W that it accepts. Its state_dict does not depend on how it is computed
    (gradient checkpointing, channels_last, compile).

    Returns:
        Network in training mode.

    Raises:
        InputError: If the config is unsupported.
    """
    backbone = _build(settings)
    if settings.gradient_checkpointing:
        if isinstance(settings, config.CustomBackbone | config.TimmBackbone):
            raise InputError(
                "backbone.gradient_checkpointing: not supported for external backbones, whose blocks are unknown"
            )
        assert not isinstance(backbone, ExternalBackbone)
        for block in backbone.blocks:
            # The random state is preserved, and MicroBatchRunner freezes running statistics in the second
            # forward pass.
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    if not settings.channels_last:
        backbone.register_forward_pre_hook(_to_contiguous)
    if settings.compile:
        # IResNet's blocks are one function to the compiler, with variants for shape, mode and momentum. After
        # its default limit of 8 variants, the others would run uncompiled: those of training, if an
        # evaluation came first.
        torch._dynamo.config.recompile_limit = 64
        backbone.compile()
    return backbone


def inference_config(settings: config.AnyBackbone) -> config.AnyBackbone:
    """Return the config of the same network without training-only options.

    timm downloads nothing: weights are loaded afterwards.
    """
    settings = msgspec.structs.replace(
        settings, gradient_checkpointing=False, compile=False, cuda_graphs=False
    )
    if isinstance(settings, config.TimmBackbone):
        return msgspec.structs.replace(settings, pretrained=False)
    return settings


def move_to_device(network: nn.Module, device: torch.device, *, channels_last: bool) -> None:
    """Move a network to a device, in its memory format."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    # torch's stubs lack the memory_format of Module.to
    network.to(device, memory_format=layout)  # type: ignore[call-overload]
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and norm.num_batches_tracked is not None:
            # Incremented in every forward pass but never used: on a GPU, one kernel per norm.
            norm.num_batches_tracked = norm.num_batches_tracked.cpu()


def _build(settings: config.AnyBackbone) -> Backbone:
    match settings:
        case config.CustomBackbone():
            network = build_custom_backbone(settings.target, settings.kwargs)
            place = f"backbone.target: {settings.target}"
            return validate_output_shape(network, settings.input_size, settings.embedding_size, place)
        case config.TimmBackbone():
            network = build_timm_backbone(
                settings.model, settings.kwargs, pretrained=settings.pretrained, **_common_args(settings)
            )
            return validate_output_shape(
                network, settings.input_size, settings.embedding_size, f"backbone.model: {settings.model}"
            )
        case config.MobileFaceNetConfig():
            return MobileFaceNet(**_common_args(settings))
        case config.MobileFaceNetLarge():
            return MobileFaceNet(width=256, depths=(2, 8, 12, 4), **_common_args(settings))
        case config.ViT():
            width, depth = _VIT_SIZES[type(settings)]
            return VisionTransformer(
                width=width,
                depth=depth,
                patch_size=settings.patch_size,
                drop_path_rate=settings.drop_path_rate,
                mask_ratio=settings.mask_ratio,
                **_common_args(settings),
            )
        case config.IResNetTiny():
            return IResNet(settings.depths, width=settings.width, **_common_args(settings))
        case config.IResNetConfig():
            return IResNet(_IRESNET_DEPTHS[type(settings)], width=_IRESNET_WIDTH, **_common_args(settings))


class _CommonArgs(TypedDict):
    input_size: int
    embedding_size: int
    dropout: float


def _common_args(settings: config.BackboneConfig) -> _CommonArgs:
    return _CommonArgs(
        input_size=settings.input_size, embedding_size=settings.embedding_size, dropout=settings.dropout
    )


def _to_contiguous(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)
