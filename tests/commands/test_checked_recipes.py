"""check and plan build what a recipe names: a network or a loss that cannot be built is said before a run."""

import json

import pytest
from helpers.calling import called
from helpers.faces import write_pack

from partialfc.config import ArcFace
from partialfc.errors import InputError
from partialfc.head import losses

NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 8, 8)
        self.fc = nn.Linear(16 * width, 16)

    def forward(self, images):
        return self.fc(self.conv(images).flatten(1))
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    write_pack(tmp_path / "pack", 5, 4)
    (tmp_path / "my_net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    backbone = {
        "name": "python",
        "target": "my_net:Net",
        "kwargs": {"width": 4},
        "embedding_size": 16,
        "input_size": 32,
    }
    sections = {
        "data": {"path": "pack", "num_workers": 0},
        "backbone": backbone,
        "train": {"length": 2, "global_batch_size": 8},
        "output": "out",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(sections))
    return tmp_path / "recipe.yaml"


def test_a_network_in_the_current_folder_is_found_by_every_command(recipe):
    for command in (["check", recipe], ["plan", recipe], ["train", recipe, "--ranks", 1]):
        done = called(*command)
        assert done.returncode == 0, done.stderr
    shown = called("plan", recipe, "--gpus", 1).stdout
    assert "backbone: parameters" in shown and "backbone: activations, estimated" in shown
    target = ("--backbone-target", "my_net:Net")
    for command in (["export", "out", "exported"], ["embed", "out", "pack", "embedded"]):
        done = called(*command, *target)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["check", "plan"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("backbone.target=nowhere:Net", "backbone.target: nowhere:Net: No module named 'nowhere'"),
        ("backbone.kwargs={depth: 3}", "backbone.kwargs: .*unexpected keyword argument 'depth'"),
        ("backbone.embedding_size=17", r"gives \[2, 16\] for images .*, expected \[2, 17\]"),
        ("backbone={name: timm, model: convnext_tiny}", "timm, which is not installed"),
    ],
)
def test_what_cannot_be_built_is_refused(recipe, command, change, message):
    if "timm" in change and not_missing("timm"):
        pytest.skip("timm is installed")
    done = called(command, recipe, change)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    import re

    assert re.search(message, done.stderr), done.stderr


def not_missing(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def test_a_loss_without_implementation_is_named(monkeypatch):
    monkeypatch.setattr(losses, "_LOSSES", {})
    with pytest.raises(InputError, match=r"loss\.name: ArcFace has settings, but no implementation"):
        losses.build_loss(ArcFace())
