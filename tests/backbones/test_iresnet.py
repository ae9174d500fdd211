"""The building block is that of the field's checkpoints, at any width and input size."""

import pytest
import torch

from partialfc.backbones import build_backbone
from partialfc.config import IResNet18, IResNet34, IResNet50, IResNet100, IResNet200, IResNet2060, IResNetTiny


@pytest.mark.parametrize(
    ("width", "size", "depths"), [(8, 32, (1, 1)), (4, 48, (1, 2, 1, 1)), (4, 50, (1, 1, 1))]
)
def test_embeddings_of_any_width_and_input_size(width, size, depths):
    backbone = build_backbone(IResNetTiny(width=width, input_size=size, depths=depths, embedding_size=24))
    embeddings = backbone(torch.randn(3, 3, size, size))
    assert embeddings.shape == (3, 24) and embeddings.dtype == torch.float32
    assert backbone.input_size == size


@pytest.mark.parametrize("width", [4, 8, 12, 16])
def test_narrow_projections_have_the_right_gradient_in_channels_last(width):
    """torch's own kernel writes past its memory below 8 or 16 channels: wrong gradients, or the process ends."""
    images = torch.randn(24, width, 32, 32, generator=torch.Generator().manual_seed(1))
    for _ in range(20):
        projection = build_backbone(IResNetTiny(width=width)).layer2[0].downsample[0]
        gradients = []
        for layout in (torch.channels_last, torch.contiguous_format):
            projection.to(memory_format=layout).zero_grad()
            projection(images.to(memory_format=layout)).square().sum().backward()
            gradients.append(projection.weight.grad)
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * float(gradients[1].abs().max()))


def test_names_are_those_of_the_common_checkpoints():
    state = build_backbone(IResNetTiny(depths=(1, 2), dropout=0.4)).state_dict()
    names = {name.rpartition(".")[0] for name in state}
    block = {f"layer2.1.{part}" for part in ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")}
    outside = {"conv1", "bn1", "prelu", "bn2", "fc", "features"}
    assert block | outside | {"layer1.0.downsample.0", "layer1.0.downsample.1"} <= names
    assert "layer2.1.downsample.0" not in names


def published_names(depths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the common checkpoints, written down from the published structure."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,)}
    norms = {"bn1": 64, "bn2": 512, "features": 512}
    channels = 64
    for stage, depth in enumerate(depths, 1):
        out = 32 << stage
        for block in range(depth):
            name = f"layer{stage}.{block}"
            norms |= {f"{name}.bn1": channels, f"{name}.bn2": out, f"{name}.bn3": out}
            shapes |= {f"{name}.conv1.weight": (out, channels, 3, 3), f"{name}.prelu.weight": (out,)}
            shapes[f"{name}.conv2.weight"] = (out, out, 3, 3)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (out, channels, 1, 1)
                norms[f"{name}.downsample.1"] = out
            channels = out
    for name, width in norms.items():
        shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = ()
    return shapes | {"fc.weight": (512, 512 * 7 * 7), "fc.bias": (512,)}


PUBLISHED = {
    IResNet18: (2, 2, 2, 2),
    IResNet34: (3, 4, 6, 3),
    IResNet50: (3, 4, 14, 3),
    IResNet100: (3, 13, 30, 3),
    IResNet200: (6, 26, 60, 6),
    IResNet2060: (3, 128, 896, 3),
}


@pytest.mark.parametrize(("settings", "depths"), PUBLISHED.items())
def test_the_published_networks_have_the_published_names_and_shapes(settings, depths):
    with torch.device("meta"):
        state = build_backbone(settings()).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == published_names(depths)


def test_the_scale_of_the_last_normalisation_stays_one():
    backbone = build_backbone(IResNetTiny())
    assert not backbone.features.weight.requires_grad and (backbone.features.weight == 1).all()


def test_dropout_acts_in_training_only():
    backbone = build_backbone(IResNetTiny(input_size=32, dropout=0.5))
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(backbone(images), backbone(images))
    backbone.eval()
    assert torch.equal(backbone(images), backbone(images))
