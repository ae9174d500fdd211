"""Networks beside the iresnets: names and shapes are those of the checkpoints in common use, written down from the
published structure; and how a network is computed changes nothing but rounding.
"""

import msgspec
import pytest
import torch

from partialfc.backbones import build_backbone
from partialfc.config import (
    IResNetTiny,
    MobileFaceNetConfig,
    MobileFaceNetLarge,
    ViTBase,
    ViTLarge,
    ViTSmall,
    ViTTiny,
)

Shapes = dict[str, tuple[int, ...]]


def norm(name: str, width: int) -> Shapes:
    shapes = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


def convolution(name: str, out: int, channels: int, kernel: int, *, prelu: bool = True) -> Shapes:
    slopes = {f"{name}.layers.2.weight": (out,)} if prelu else {}
    weight = {f"{name}.layers.0.weight": (out, channels, kernel, kernel)}
    return weight | norm(f"{name}.layers.1", out) | slopes


def bottleneck(name: str, channels: int, out: int, inner: int) -> Shapes:
    return (
        convolution(f"{name}.layers.0", inner, channels, 1)
        | convolution(f"{name}.layers.1", inner, 1, 3)
        | convolution(f"{name}.layers.2", out, inner, 1, prelu=False)
    )


def mobilefacenet() -> Shapes:
    """insightface's mbf: blocks (1, 4, 6, 2), scale 2."""
    shapes = convolution("layers.0", 128, 3, 3) | convolution("layers.1", 128, 2, 3)
    shapes |= bottleneck("layers.2", 128, 128, 128)
    for block in range(4):
        shapes |= bottleneck(f"layers.3.layers.{block}", 128, 128, 128)
    shapes |= bottleneck("layers.4", 128, 256, 256)
    for block in range(6):
        shapes |= bottleneck(f"layers.5.layers.{block}", 256, 256, 256)
    shapes |= bottleneck("layers.6", 256, 256, 512)
    for block in range(2):
        shapes |= bottleneck(f"layers.7.layers.{block}", 256, 256, 256)
    shapes |= convolution("conv_sep", 512, 256, 1)
    shapes |= convolution("features.layers.0", 512, 1, 7, prelu=False)
    return shapes | {"features.layers.2.weight": (512, 512)} | norm("features.layers.3", 512)


def mobilefacenet_large() -> Shapes:
    """insightface's mbf_large: blocks (2, 8, 12, 4), scale 4."""
    shapes = convolution("layers.0", 256, 3, 3)
    stages = ((1, 2, 256, 128), (3, 8, 256, 128), (5, 12, 512, 256), (7, 4, 512, 256))
    for place, blocks, channels, inner in stages:
        for block in range(blocks):
            shapes |= bottleneck(f"layers.{place}.layers.{block}", channels, channels, inner)
    shapes |= bottleneck("layers.2", 256, 256, 128)
    shapes |= bottleneck("layers.4", 256, 512, 256)
    shapes |= bottleneck("layers.6", 512, 512, 512)
    shapes |= convolution("conv_sep", 512, 512, 1)
    shapes |= convolution("features.layers.0", 512, 1, 7, prelu=False)
    return shapes | {"features.layers.2.weight": (512, 512)} | norm("features.layers.3", 512)


def vit(width: int, depth: int) -> Shapes:
    shapes: Shapes = {
        "pos_embed": (1, 144, width),
        "mask_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 3, 9, 9),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "feature.0.weight": (width, 144 * width),
        "feature.2.weight": (512, width),
    }
    for block in range(depth):
        name = f"blocks.{block}"
        shapes |= {f"{name}.norm{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")}
        shapes |= {f"{name}.attn.qkv.weight": (3 * width, width), f"{name}.attn.proj.weight": (width, width)}
        shapes |= {f"{name}.attn.proj.bias": (width,), f"{name}.mlp.fc1.weight": (4 * width, width)}
        shapes |= {f"{name}.mlp.fc1.bias": (4 * width,), f"{name}.mlp.fc2.weight": (width, 4 * width)}
        shapes |= {f"{name}.mlp.fc2.bias": (width,)}
    return shapes | norm("feature.1", width) | norm("feature.3", 512)


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        (MobileFaceNetConfig(), mobilefacenet()),
        (MobileFaceNetLarge(), mobilefacenet_large()),
        (ViTTiny(), vit(256, 12)),
        (ViTSmall(), vit(512, 12)),
        (ViTBase(), vit(512, 24)),
        (ViTLarge(), vit(768, 24)),
    ],
    ids=lambda it: type(it).__name__,
)
def test_names_and_shapes_are_the_published_ones(settings, shapes):
    with torch.device("meta"):
        state = build_backbone(settings).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == shapes


SMALL = [
    IResNetTiny(width=4, depths=(1, 2), input_size=32, embedding_size=8, dropout=0.3),
    MobileFaceNetConfig(input_size=32, embedding_size=8, dropout=0.3),
    MobileFaceNetLarge(input_size=32, embedding_size=8, dropout=0.3),
    ViTTiny(input_size=32, embedding_size=8, patch_size=8, dropout=0.3, drop_path_rate=0.3, mask_ratio=0.3),
]


def gradients(settings) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    backbone = build_backbone(settings)
    images = torch.randn(6, 3, 32, 32).to(memory_format=torch.channels_last)
    embeddings = backbone(images)
    assert embeddings.shape == (6, 8) and embeddings.dtype == torch.float32
    embeddings.square().sum().backward()
    return embeddings.detach(), torch.cat(
        [it.grad.flatten() for it in backbone.parameters() if it.grad is not None]
    )


@pytest.mark.parametrize("settings", SMALL, ids=lambda it: type(it).__name__)
@pytest.mark.parametrize("how", [{"gradient_checkpointing": True}, {"channels_last": False}], ids=str)
def test_how_it_is_computed_changes_nothing(settings, how):
    if "channels_last" in how:
        settings = msgspec.structs.replace(settings, dropout=0.0)  # which is drawn in the order of memory
    changed = msgspec.structs.replace(settings, **how)
    for found, expected in zip(gradients(changed), gradients(settings), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", SMALL[1:], ids=lambda it: type(it).__name__)
def test_what_is_random_acts_in_training_only(settings):
    backbone = build_backbone(settings)
    images = torch.randn(6, 3, 32, 32)
    assert not torch.equal(backbone(images), backbone(images))
    backbone.eval()
    assert torch.equal(backbone(images), backbone(images))


def test_masked_patches_do_not_reach_the_blocks():
    backbone = build_backbone(ViTTiny(input_size=32, embedding_size=8, patch_size=8, mask_ratio=0.25))
    seen = []
    backbone.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    backbone(torch.randn(2, 3, 32, 32))
    backbone.eval()(torch.randn(2, 3, 32, 32))
    assert seen == [12, 16]
