"""Files from strangers: code that they name is not imported, sizes that they name are not allocated."""

import json
import sys
import types
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.calling import called
from helpers.faces import face, write_pairs
from helpers.runs import config_of, refusal, trained

import partialfc
from partialfc.backbones import build_backbone
from partialfc.config import CustomBackbone, IResNetTiny, ViTTiny, load_config
from partialfc.conversion import convert
from partialfc.errors import InputError
from partialfc.inference.recognizer import load
from partialfc.inference.weights import resolve_checkpoint
from partialfc.runtime.checkpoint import read_rows

NETWORK = """
import os
from pathlib import Path
from torch import nn

Path(os.environ.get("PLANTED", os.devnull)).touch()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.fc = nn.Linear(256, 16)

    def forward(self, images):
        return self.fc(self.conv(images).flatten(1))
"""


def train_in(folder: str, config) -> None:
    sys.path.insert(0, folder)
    try:
        trained(config)
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def stranger(ranks, pack, tmp_path_factory) -> Path:
    """A run whose network is a class of its owner, and its export."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "planted.py").write_text(NETWORK)
    settings = CustomBackbone(target="planted:Net", embedding_size=16, input_size=32)
    config = config_of(pack, folder / "run", train={"length": 2}, log={"every": 1, "loggers": []})
    ranks.run(1, train_in, str(folder), msgspec.structs.replace(config, backbone=settings))
    weights = partialfc.inference.weights.read_weights(folder / "run")
    about = {"backbone": json.dumps(msgspec.to_builtins(settings))}
    safetensors.torch.save_file(weights, folder / "model.safetensors", about)
    return folder


@pytest.fixture
def planted(stranger, tmp_path, monkeypatch) -> Path:
    """A file that exists once the module was imported, which is in the current folder."""
    (tmp_path / "planted.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLANTED", str(tmp_path / "IMPORTED"))
    write_pairs(tmp_path / "pairs.bin", 10, 32)
    for name in ("a", "b"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        (tmp_path / "faces" / name / "0.jpg").write_bytes(face(ord(name), 0))
    return tmp_path / "IMPORTED"


ENDINGS = {"report": "html", "plot": "png"}
USES = {
    "evaluate": ("evaluate", "MODEL", "pairs.bin"),
    "embed": ("embed", "MODEL", "faces", "out.npz"),
    "compare": ("compare", "MODEL", "faces/a/0.jpg", "faces/b/0.jpg"),
    "relabel": ("relabel", "MODEL", "PACK", "out"),
    "overlap": ("overlap", "PACK", "pairs.bin", "out", "--model", "MODEL"),
    "export": ("export", "RUN", "out"),
    "clean": ("clean", "RUN", "PACK", "out"),
}


@pytest.mark.parametrize("use", USES)
def test_no_command_imports_what_a_file_names(stranger, planted, pack, use):
    places = {"MODEL": stranger / "model.safetensors", "RUN": stranger / "run", "PACK": pack}
    done = called(*(places.get(word, word) for word in USES[use]))
    assert done.returncode == 2 and not planted.exists()
    assert "refers to code, planted:Net, which was not imported; pass --backbone-target" in done.stderr
    assert done.stderr.count("\n") == 1


def test_reading_a_run_imports_nothing(stranger, planted, pack, tmp_path, ranks):
    """Reports, weights and centers to begin with, and a resume in the folder of a stranger."""
    for command in ("report", "plot"):
        done = called(command, stranger / "run", "--out", tmp_path / f"{command}.{ENDINGS[command]}")
        assert done.returncode == 0, done.stderr
    begin = {"init": {"backbone": str(stranger / "run"), "centers": {"from": str(stranger / "run")}}}
    (told,) = ranks.run(1, refusal, config_of(pack, tmp_path / "new", **begin))
    assert "weights of a different network" in told
    (told,) = ranks.run(1, refusal, config_of(pack, stranger / "run", train={"length": 2}))
    assert "backbone.target planted:Net -> (none)" in told
    taught = {"distillation": {"teacher_embeddings": str(stranger / "run")}}
    (told,) = ranks.run(1, refusal, config_of(pack, tmp_path / "taught", **taught))
    assert "expected a folder written by partialfc embed" in told
    assert not planted.exists()


def test_an_import_of_pickled_code_imports_nothing(planted, pack, tmp_path):
    """A class of the planted module, pickled by its name in a checkpoint of arcface_torch."""
    (tmp_path / "theirs").mkdir()
    source = "class Net: ...\nNet.__module__ = 'planted'\n"
    names: dict = {}
    exec(source, names)
    module = types.ModuleType("planted")
    module.Net = names["Net"]
    sys.modules["planted"] = module
    try:
        torch.save({"global_step": names["Net"]()}, tmp_path / "theirs/checkpoint_gpu_0.pt")
    finally:
        del sys.modules["planted"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(msgspec.to_builtins(config_of(pack, tmp_path / "on"))))
    done = called("import", tmp_path / "theirs", recipe)
    assert (
        done.returncode == 2 and "not a checkpoint of arcface_torch" in done.stderr and not planted.exists()
    )


def test_the_caller_may_name_the_class_or_trust_the_file(stranger, planted, monkeypatch):
    monkeypatch.setattr(sys, "path", [it for it in sys.path if it])
    image = np.zeros((32, 32, 3), np.uint8)
    for path in (stranger / "run", stranger / "model.safetensors"):
        by_name = load(path, backbone_target="planted:Net", device="cpu").embed([image])
        trusted = load(path, trust_code=True, device="cpu").embed([image])
        np.testing.assert_array_equal(by_name, trusted)
    assert planted.exists()
    sys.modules.pop("planted")
    done = called(
        "compare", stranger / "run", "faces/a/0.jpg", "faces/a/0.jpg", "--backbone-target", "planted:Net"
    )
    assert done.stdout.startswith("1.0000"), done.stderr


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"name": "python", "target": ":x"}, "backbone: target: ':x', expected module:Class"),
        ({"name": "python", "target": "..x:y"}, "expected module:Class"),
        ({"name": "iresnet_tiny", "width": 1_000_000}, "width"),
        ({"name": "iresnet_tiny", "width": 4096, "depths": [1] * 5, "input_size": 512}, "different network"),
        ({"name": "iresnet_tiny", "depths": [10**9, 1]}, "depths"),
        ({"name": "iresnet_tiny", "embedding_size": 10**9}, "embedding_size"),
        ({"name": "iresnet_tiny", "embedding_size": 65536, "input_size": 512}, "different network"),
        ({"name": "iresnet2060", "embedding_size": 65536, "input_size": 512}, "different network"),
        ({"name": "iresnet_tiny", "embedding": 16}, "embedding: unknown key; since 0.3 it is backbone.embedding_size"),
        ({"name": "vit_l", "patch_size": 4, "input_size": 512}, "different network"),
        ({"name": "mobilefacenet_large", "input_size": 512}, "different network"),
        ({"name": "\ud800"}, "surrogates|JSON"),
        ('{"name": ' + "1" * 5000 + "}", "JSON|name"),
        ("[" * 100_000, "JSON"),
        ('{"a": ' * 100_000, "JSON"),
        ("[1]", "JSON"),
    ],
)  # fmt: skip
def test_sizes_are_compared_before_anything_is_allocated(tmp_path, described, message, monkeypatch):
    text = described if isinstance(described, str) else json.dumps(described)
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, {"backbone": text})
    monkeypatch.setattr(partialfc.inference.recognizer, "load_weights", lambda *_: pytest.fail("allocated"))
    with pytest.raises(InputError, match=message):
        load(path, device="cpu")


@pytest.mark.parametrize("settings", [IResNetTiny(), ViTTiny(input_size=32, patch_size=8)])
def test_what_fits_is_loaded_as_it_was_built(tmp_path, settings):
    network = build_backbone(settings).eval()
    about = {"backbone": json.dumps(msgspec.to_builtins(settings))}
    safetensors.torch.save_file(network.state_dict(), tmp_path / "a.safetensors", about)
    images = torch.rand(2, 3, settings.input_size, settings.input_size)
    found = load(tmp_path / "a.safetensors", device="cpu").network(images)
    torch.testing.assert_close(found, network(images), atol=1e-4, rtol=1e-4)


def test_recipes_that_are_too_deep_are_refused(tmp_path):
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 5000)
    with pytest.raises(InputError, match=r"deep\.yaml"):
        load_config(tmp_path / "deep.yaml")
    tree: dict = {}
    for _ in range(5000):
        tree = {"a": tree}
    with pytest.raises(InputError, match="nested too deeply"):
        convert(tree, IResNetTiny, "here")


def test_rows_of_a_checkpoint_are_compared_with_their_digest(stranger, tmp_path):
    checkpoint = resolve_checkpoint(stranger / "run")
    rows = read_rows(checkpoint, "head.centers", 0, 23)
    file = next(checkpoint.glob("*.safetensors"))
    whole = file.read_bytes()
    place = whole.index(rows[3].numpy().tobytes())
    try:
        file.write_bytes(whole[: place + 3] + bytes([whole[place + 3] ^ 8]) + whole[place + 4 :])
        with pytest.raises(InputError, match=f"{file.name}: damaged"):
            read_rows(checkpoint, "head.centers", 0, 23)
    finally:
        file.write_bytes(whole)
