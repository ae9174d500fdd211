"""A program of its own: networks of timm itself are built, planned, saved and loaded; exit code 5 where there is no timm.

timm imports torchvision, whose operators load only beside the same build of torch. Of torchvision, names will do.
"""

import enum
import json
import sys
import tempfile
import types
from pathlib import Path

import msgspec
import safetensors.torch
import torch

import partialfc
from partialfc.backbones import build_backbone
from partialfc.config import TimmBackbone, load_config
from partialfc.plan import PlannedRun, format_plan

_PARTS = ("", ".transforms", ".transforms.functional", ".models", ".models.feature_extraction", ".datasets", ".ops",
          ".ops.misc", ".transforms.v2")  # fmt: skip
_MODES = ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS", "NEAREST_EXACT")


class _Names(types.ModuleType):
    """A module in which every name is a class."""

    __path__ = ()
    __version__ = "0"

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def stand_in_for_torchvision() -> None:
    for part in _PARTS:
        name = f"torchvision{part}"
        module = sys.modules[name] = _Names(name)
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)
    modes = enum.Enum("InterpolationMode", {it: it.lower() for it in _MODES})
    for name in ("transforms", "transforms.functional"):
        sys.modules[f"torchvision.{name}"].InterpolationMode = modes


def try_model(model: str, folder: Path) -> None:
    settings = TimmBackbone(model=model, embedding_size=24, input_size=64, kwargs={"drop_rate": 0.1})
    network = build_backbone(settings).eval()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 24)
    about = {"backbone": json.dumps(msgspec.to_builtins(settings))}
    safetensors.torch.save_file(network.state_dict(), folder / "a.safetensors", about)
    loaded = partialfc.load(folder / "a.safetensors").network
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(loaded(images), network(images), atol=1e-4, rtol=1e-4)
    config = msgspec.structs.replace(load_config("quickstart"), backbone=settings)
    assert "backbone: parameters" in format_plan(PlannedRun(config, 1000, 1), "a100", None)
    print(f"{model}: ok")


def main() -> None:
    stand_in_for_torchvision()
    try:
        import timm  # noqa: F401
    except ModuleNotFoundError:
        sys.exit(5)
    with tempfile.TemporaryDirectory() as folder:
        for model in sys.argv[1:]:
            try_model(model, Path(folder))


if __name__ == "__main__":
    main()
