"""The building block is that of the field's checkpoints, at any width and input size."""

import pytest
import torch

from partialfc.backbones import build_backbone
from partialfc.config import IResNetTiny


@pytest.mark.parametrize(
    ("width", "size", "depths"), [(8, 32, (1, 1)), (4, 48, (1, 2, 1, 1)), (4, 50, (1, 1, 1))]
)
def test_embeddings_of_any_width_and_input_size(width, size, depths):
    backbone = build_backbone(IResNetTiny(width=width, input_size=size, depths=depths, embedding=24))
    embeddings = backbone(torch.randn(3, 3, size, size))
    assert embeddings.shape == (3, 24) and embeddings.dtype == torch.float32
    assert backbone.input_size == size


def test_names_are_those_of_the_common_checkpoints():
    state = build_backbone(IResNetTiny(depths=(1, 2), dropout=0.4)).state_dict()
    names = {name.rpartition(".")[0] for name in state}
    block = {f"layer2.1.{part}" for part in ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")}
    outside = {"conv1", "bn1", "prelu", "bn2", "fc", "features"}
    assert block | outside | {"layer1.0.downsample.0", "layer1.0.downsample.1"} <= names
    assert "layer2.1.downsample.0" not in names


def test_the_scale_of_the_last_normalisation_stays_one():
    backbone = build_backbone(IResNetTiny())
    assert not backbone.features.weight.requires_grad and (backbone.features.weight == 1).all()


def test_dropout_acts_in_training_only():
    backbone = build_backbone(IResNetTiny(input_size=32, dropout=0.5))
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(backbone(images), backbone(images))
    backbone.eval()
    assert torch.equal(backbone(images), backbone(images))
