"""Operations of networks and steps, against published numbers and by hand."""

import pytest
import torch

from partialfc.backbones import build_backbone
from partialfc.backbones.flops import count_forward_flops
from partialfc.config import AnyBackbone
from partialfc.conversion import convert
from partialfc.training.flops import StepFlops, peak_flops


# GFLOPs of insightface's model zoo, which counts a multiplication and an addition as one.
@pytest.mark.parametrize(
    ("name", "published"), [("iresnet18", 2.62), ("iresnet50", 6.33), ("iresnet100", 12.1)]
)
def test_operations_are_the_published_ones(name, published):
    backbone = build_backbone(convert({"name": name}, AnyBackbone, "backbone"))
    assert count_forward_flops(backbone) == pytest.approx(2e9 * published, rel=0.01)


def test_counting_changes_nothing():
    settings = convert({"name": "iresnet_tiny", "width": 4, "dropout": 0.5}, AnyBackbone, "backbone")
    backbone = build_backbone(settings)
    before, random = {name: it.clone() for name, it in backbone.state_dict().items()}, torch.get_rng_state()
    assert count_forward_flops(backbone) > 0
    assert backbone.training and all(it.grad is None for it in backbone.parameters())
    assert all(torch.equal(it, before[name]) for name, it in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_step_is_three_forwards_and_three_products_of_the_head():
    flops = StepFlops(forward=10, images=3, batch=6, width=2)
    assert flops(5, frozen=False) == 3 * 3 * 10 + 3 * 2 * 6 * 5 * 2
    assert flops(5, frozen=True) == 3 * 10 + 3 * 2 * 6 * 5 * 2


def test_the_peak_of_a_gpu_is_known_by_its_name(monkeypatch):
    names = {"NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA H200": 989e12, "NVIDIA GeForce RTX 4090": None}
    for name, expected in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_flops("bfloat16", torch.device("cuda", 0)) == expected
    assert peak_flops("bfloat16", torch.device("cpu")) is None
