"""Networks of others: a class of one's own in a recipe, and timm's."""

import subprocess
import sys
import types
from pathlib import Path

import msgspec
import pytest
import torch
from helpers.runs import config_of, curve, trained
from torch import Tensor, nn

import partialfc
from partialfc.backbones import build_backbone
from partialfc.config import Config, CustomBackbone, TimmBackbone, load_config
from partialfc.errors import InputError

SOURCE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 4, stride=4)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels * 64, 16)

    def forward(self, images):
        return self.fc(self.norm(self.conv(images)).relu().flatten(1))

def function():
    raise AssertionError("called")
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """A module of a user's, beside the recipe."""
    (tmp_path / "their_networks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "their_networks"


def by_their_network(folder: str, config) -> dict:
    sys.path.insert(0, folder)
    try:
        return trained(config)
    finally:
        sys.path.remove(folder)


def test_a_class_of_ones_own_is_trained_saved_and_used(ranks, pack, tmp_path, module):
    backbone = CustomBackbone(
        target=f"{module}:Small", kwargs={"channels": 8}, embedding_size=16, input_size=32
    )

    def config_in(output: Path) -> Config:
        small = {"length": 6, "micro_batch_size": 12}
        return msgspec.structs.replace(config_of(pack, output, train=small), backbone=backbone)

    config = config_in(tmp_path / "run")
    (state,) = ranks.run(1, by_their_network, str(tmp_path), config)
    assert state["conv.weight"].shape == (8, 3, 4, 4)  # its own names
    ranks.run(2, by_their_network, str(tmp_path), config_in(tmp_path / "other"))
    assert curve(tmp_path / "run") == pytest.approx(curve(tmp_path / "other"), rel=1e-4)
    model = partialfc.load(tmp_path / "run", trust_code=True)
    assert type(model.network).__name__ == "Small"
    assert model.embed([next(iter(partialfc.RecordDataset(pack)))[0]]).shape == (1, 16)


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ("nowhere_at_all:Net", {}, "backbone.target: nowhere_at_all:Net: No module named .*; expected a module of the environment"),
        ("their_networks:Large", {}, "no class of their_networks that is a torch.nn.Module"),
        ("their_networks:function", {}, "no class of their_networks that is a torch.nn.Module"),
        ("os:system", {"kwargs": {"command": "touch HERE"}}, "no class of os that is a torch.nn.Module"),
        ("their_networks", {}, "expected|expected module:Class"),
        (":x", {}, "expected module:Class"),
        ("..x:y", {}, "expected module:Class"),
        ("their_networks:Small", {"kwargs": {"width": 3}}, "backbone.kwargs: .*unexpected keyword argument 'width'"),
        ("their_networks:Small", {"embedding_size": 17}, r"gives \[2, 16\] for images \[2, 3, 32, 32\], expected \[2, 17\]"),
        ("their_networks:Small", {"input_size": 48}, r"takes no images \[2, 3, 48, 48\]: mat1 and mat2"),
        ("their_networks:Small", {"gradient_checkpointing": True}, "backbone.gradient_checkpointing: not supported for external backbones"),
    ],
)  # fmt: skip
def test_what_is_no_network_is_refused(module, tmp_path, monkeypatch, target, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        build_backbone(CustomBackbone(**{"target": target, "embedding_size": 16, "input_size": 32} | more))
    assert not Path("HERE").exists()


class Trunk(nn.Module):
    """As timm's networks are without a classifier."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 8, stride=8)

    def forward(self, images: Tensor) -> Tensor:
        return self.stem(images).mean((2, 3))


class Wide(Trunk):
    """As mobilenetv3 and ghostnet are, whose head has more features than their last stage."""

    head_hidden_size = 24

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).repeat(1, 2)


@pytest.fixture
def timm(monkeypatch) -> None:
    """timm wants torchvision, which there is none of for every build of torch: this is what is used of it."""

    def create_model(name: str, *, pretrained: bool, num_classes: int, **more: int) -> nn.Module:
        assert num_classes == 0 and not pretrained
        if more.keys() - {"wide"}:
            raise TypeError(f"unexpected keyword argument {sorted(more)[0]!r}")
        return Wide() if more.get("wide") else Trunk()

    stand_in = types.ModuleType("timm")
    stand_in.list_models = lambda pattern="*": ["convnext_tiny", "convnext_small"]
    stand_in.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", stand_in)


def test_a_network_of_timm_gets_an_embedding_layer(timm, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "base: quickstart\nbackbone: {name: timm, model: convnext_tiny, embedding_size: 24, input_size: 64}\n"
    )
    network = build_backbone(load_config(tmp_path / "recipe.yaml").backbone)
    assert network.input_size == 64 and network(torch.zeros(3, 3, 64, 64)).shape == (3, 24)
    assert {"0.stem.weight", "2.weight", "3.running_mean"} <= network.state_dict().keys()


def test_a_model_that_timm_has_not_is_refused(timm):
    with pytest.raises(InputError, match=r"timm has no 'convnext_tny'; .* such as convnext_tiny"):
        build_backbone(TimmBackbone(model="convnext_tny"))


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="missing package timm; install it with: pip install --no-deps timm"):
        build_backbone(TimmBackbone(model="convnext_tiny"))


def test_arguments_reach_a_model_of_timm_whose_head_may_be_wider(timm):
    network = build_backbone(
        TimmBackbone(model="convnext_tiny", kwargs={"wide": True}, embedding_size=7, input_size=32)
    )
    assert network.state_dict()["2.weight"].shape == (7, 24)
    with pytest.raises(InputError, match=r"backbone\.kwargs: unexpected keyword argument 'depth'"):
        build_backbone(TimmBackbone(model="convnext_tiny", kwargs={"depth": 3}))


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained", "pretrained_cfg_overlay", "num_classes"])
def test_arguments_that_are_timms_own_are_refused(name):
    with pytest.raises(InputError, match=f"backbone.kwargs: expected arguments of the model, got {name}"):
        TimmBackbone(model="convnext_tiny", kwargs={name: "/somewhere"})


MODELS = ("mobilenetv3_large_100", "ghostnet_100", "convnext_tiny", "vit_tiny_patch16_224")


def test_real_models_of_timm_are_built_planned_saved_and_loaded():
    """In a program of its own, see there."""
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("real_timm.py"), *MODELS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode == 5:
        pytest.skip("timm is not installed: pip install --no-deps timm")
    assert done.stdout.splitlines() == [f"{it}: ok" for it in MODELS], done.stderr
