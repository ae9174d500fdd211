"""Weights that others trained: they fit whole, or what does not fit is listed."""

import os

import pytest
import safetensors.torch
import torch
from helpers.runs import assert_refused, config_of, trained

from partialfc.backbones import build_backbone
from partialfc.config import IResNetTiny
from partialfc.errors import InputError
from partialfc.inference.weights import load_weights, read_weights

SETTINGS = IResNetTiny(
    width=4, depths=(1, 1), input_size=32, embedding_size=16, dropout=0.2
)  # as config_of's


def weights(seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return build_backbone(SETTINGS).state_dict()


@pytest.mark.parametrize("kind", ["plain", "as of DDP", "in a checkpoint of insightface", "safetensors"])
def test_files_of_weights(tmp_path, kind):
    state = weights()
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    match kind:
        case "safetensors":
            safetensors.torch.save_file(state, path)
        case "as of DDP":
            torch.save({f"module.{name}": it for name, it in state.items()}, path)
        case "plain":
            torch.save(state, path)
        case _:
            torch.save({"epoch": 3, "state_dict_backbone": state}, path)
    backbone = build_backbone(SETTINGS)
    load_weights(backbone, read_weights(path), path)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_run_begins_with_the_weights_of_a_file_or_another_run(ranks, pack, tmp_path):
    torch.save(weights(), tmp_path / "a.pt")
    first = config_of(
        pack,
        tmp_path / "first",
        init={"backbone": str(tmp_path / "a.pt")},
        optim={"lr": 1e-12},
        train={"length": 2},
    )
    (state,) = ranks.run(1, trained, first)
    torch.testing.assert_close(state["conv1.weight"], weights()["conv1.weight"])
    second = config_of(
        pack, tmp_path / "second", init={"backbone": str(tmp_path / "first")}, train={"length": 2}
    )
    assert trained_loss(ranks, second) != trained_loss(
        ranks, config_of(pack, tmp_path / "third", train={"length": 2})
    )
    for name, tensor in read_weights(tmp_path / "first").items():
        assert torch.equal(tensor, state[name])


def trained_loss(ranks, config) -> float:
    (state,) = ranks.run(1, trained, config)
    return state["conv1.weight"].sum().item()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("fc.bias"),
            r"a\.pth: weights of a different network; 1 missing: fc\.bias$",
        ),
        (lambda state: state.update(a=torch.ones(1)), r"1 surplus: a$"),
        (
            lambda state: state.update({"conv1.weight": torch.ones(8, 3, 3, 3), "b.c": torch.ones(1)}),
            r"1 surplus: b\.c; 1 of a different shape: conv1\.weight \(8, 3, 3, 3\) for \(4, 3, 3, 3\)$",
        ),
        (
            lambda state: [state.pop(name) for name in list(state) if name.startswith("layer1")],
            r"\d+ missing: layer1\.0\.bn1\.bias, .* \.\.\.$",
        ),
    ],
)
def test_weights_that_do_not_fit_are_listed(ranks, pack, tmp_path, change, message):
    state = weights()
    change(state)
    torch.save(state, tmp_path / "a.pth")
    config = config_of(pack, tmp_path / "run", init={"backbone": str(tmp_path / "a.pth")})
    assert_refused(ranks, 2, config, message)


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.pth", lambda path: path.write_bytes(b"no weights"), "expected weights only: "),
        ("a.pth", lambda path: torch.save({"a": Runs()}, path), "expected weights only: "),
        ("a.pth", lambda path: torch.save([1, 2], path), "a list, expected names and tensors"),
        (
            "a.pth",
            lambda path: torch.save({"epoch": 3}, path),
            "a dict with the keys 'epoch', expected names and tensors",
        ),
        ("a.safetensors", lambda path: path.write_bytes(b"\xff" * 40), "not safetensors: "),
        ("a", lambda path: path.mkdir(), "no checkpoint; expected a folder step_"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path, monkeypatch, name, write, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def prefixed(prefix: str, **others: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": it for name, it in weights().items()} | others


WRAPPERS = {
    "DistributedDataParallel": lambda: prefixed("module."),
    "torch.compile": lambda: prefixed("_orig_mod."),
    "Lightning": lambda: {"epoch": 3, "state_dict": prefixed("model."), "optimizer_states": [{}]},
    "Lightning with a head": lambda: {"state_dict": prefixed("model.", **{"head.kernel": torch.ones(2, 2)})},
    "CVLface": lambda: prefixed("net."),
    "MagFace": lambda: {"state_dict": prefixed("features.module.", **{"fc.weight": torch.ones(2, 2)})},
    "under net": lambda: {"net": weights(), "acc": 99.0},
    "under an unknown key": lambda: {"encoder_weights": weights(), "step": torch.ones(1)},
    "without counters": lambda: {k: v for k, v in weights().items() if "num_batches" not in k},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_weights_are_loaded(tmp_path, wrapper):
    torch.save(WRAPPERS[wrapper](), path := tmp_path / "a.pth")
    backbone = build_backbone(SETTINGS)
    load_weights(backbone, read_weights(path), path)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, weights()[name])


def test_two_networks_in_a_file_are_not_guessed_between(tmp_path):
    torch.save({"student": weights(), "teacher": weights()}, path := tmp_path / "a.pth")
    with pytest.raises(InputError, match="a dict with the keys 'student', 'teacher', expected names"):
        read_weights(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["input_layer.0.weight", "body.0.res_layer.0.weight", "output_layer.3.weight"],
            "they are of an IR network of AdaFace or CVLface, expected an iresnet of insightface; ",
        ),
        (
            ["net.input_layer.0.weight", "net.body.0.res_layer.0.weight"],
            "they are of an IR network of AdaFace or CVLface",
        ),
        (
            ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.bn2.weight"],
            "they are of a ResNet of torchvision",
        ),
        (["patch_embed.proj.weight", "blocks.0.attn.qkv.weight"], "they are of a vision transformer"),
    ],
)
def test_another_family_is_named(names, message):
    with pytest.raises(InputError, match=message):
        load_weights(build_backbone(SETTINGS), {name: torch.ones(1) for name in names}, "a.pth")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_another_depth_is_named(prefix):
    deeper = build_backbone(
        IResNetTiny(width=4, depths=(1, 3), input_size=32, embedding_size=16)
    ).state_dict()
    with pytest.raises(
        InputError, match=r"network; 3 blocks in layer2, expected 1; \d+ surplus: layer2\.1\."
    ):
        load_weights(build_backbone(SETTINGS), {f"{prefix}{k}": v for k, v in deeper.items()}, "a.pth")


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            "a.pth",
            lambda path: (torch.save(weights(), path), cut(path)),
            "incomplete: .* of torch.save's zip",
        ),
        (
            "a.pth",
            lambda path: (torch.save(weights(), path, _use_new_zipfile_serialization=False), cut(path)),
            "the file is incomplete; copy it again",
        ),
        (
            "a.safetensors",
            lambda path: (safetensors.torch.save_file(weights(), path), cut(path)),
            "incomplete: .* fewer than its header lists",
        ),
        ("a.pth", lambda path: path.touch(), "found an empty file"),
        ("a.safetensors", lambda path: path.touch(), "found an empty file"),
        ("a.pth", lambda path: path.write_bytes(b"<!DOCTYPE html><html>"), "found a web page"),
        (
            "a.pth",
            lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
            "found a pointer of Git LFS",
        ),
        (
            "a.pth",
            lambda path: torch.save(build_backbone(SETTINGS), path),
            r"an object of [\w.]+; save its state_dict",
        ),
    ],
)
def test_incomplete_and_other_files_are_explained(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / name)


def test_safetensors_of_another_name(tmp_path):
    safetensors.torch.save_file(weights(), tmp_path / "weights.bin")
    assert read_weights(tmp_path / "weights.bin").keys() == weights().keys()


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: not found; expected weights"):
        read_weights(tmp_path / "none.pth")


def test_a_member_with_overwritten_bytes_is_named(tmp_path):
    """torch.load compares no checksum."""
    torch.save(weights(), path := tmp_path / "a.pth")
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 64] = b"\x55" * 64
    path.write_bytes(whole)
    torch.load(path, weights_only=True)
    with pytest.raises(InputError, match=r"a.pth: damaged: a/data/\d+ is not what was written"):
        read_weights(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda it: it.to("meta"),
            "conv1.weight: expected a dense tensor of ordinary floats or integers, got one on the meta",
        ),
        (lambda it: it.view(4, -1).to_sparse(), r"got a sparse one \(sparse_coo\)"),
        (lambda it: it.to(torch.complex64), "got complex64"),
        (lambda it: it.to(torch.float8_e4m3fn), "got float8_e4m3fn"),
        (
            lambda it: it.to(torch.int32),
            "weights of a different network; 1 of a different type: conv1.weight int32",
        ),
    ],
    ids=["meta", "sparse", "complex", "float8", "integer"],
)
def test_weights_of_kinds_that_would_be_changed_are_refused(tmp_path, spoil, message):
    state = weights()
    state["conv1.weight"] = spoil(state["conv1.weight"])
    torch.save(state, path := tmp_path / "a.pth")
    with pytest.raises(InputError, match=message):
        load_weights(build_backbone(SETTINGS), read_weights(path), path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_floats_are_loaded(tmp_path, dtype):
    state = {name: it.to(dtype) if it.is_floating_point() else it for name, it in weights().items()}
    torch.save(state, path := tmp_path / "a.pth")
    backbone = build_backbone(SETTINGS)
    load_weights(backbone, read_weights(path), path)
    torch.testing.assert_close(backbone.conv1.weight.data, state["conv1.weight"].float())
