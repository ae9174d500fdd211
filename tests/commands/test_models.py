"""Evaluate, embed, compare, export and plot: what they say of a run is what the run says."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.calling import called, called_module, called_tool
from helpers.faces import write_pairs
from helpers.runs import assert_refused, config_of, trained, verification_of

import partialfc
from partialfc.data import images
from partialfc.data.fingerprint import pack_fingerprint
from partialfc.data.stored_embeddings import StoredEmbeddings
from partialfc.errors import InputError
from partialfc.inference.embed_folder import embed_folder
from partialfc.inference.embed_pack import embed_pack
from partialfc.inference.recognizer import load
from partialfc.inference.weights import resolve_checkpoint

ROOT = Path(__file__).parents[2]


def test_faces_of_any_size_are_embedded_as_training_sees_them(run, folder):
    recognizer = partialfc.load(str(run))
    size = recognizer.network.input_size
    paths = sorted(folder.glob("*/*.jpg"))[:3]
    faces = [images.read(path) for path in paths]
    large = [cv2.resize(face, None, fx=2.5, fy=2.5) for face in faces]
    expected = recognizer.embed(faces)
    for given in (paths, [str(path) for path in paths], np.stack(faces)):
        np.testing.assert_array_equal(recognizer.embed(given), expected)
    np.testing.assert_array_equal(
        recognizer.embed(large), recognizer.embed([images.resize(face, size) for face in large])
    )
    many = recognizer.embed(faces * 50)  # in several batches
    np.testing.assert_allclose(many, np.tile(expected, (50, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("faces", "message"),
    [
        ("a.jpg", "a.jpg: expected a list of images"),
        ([], "expected at least one image, got none"),
        (
            [np.zeros((48, 48), np.uint8)],
            r"image 0: uint8 of shape \(48, 48\); expected uint8 RGB \[H, W, 3\]",
        ),
        ([np.zeros((48, 48, 4), np.uint8)], "image 0: uint8 of shape"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((48, 48, 3))], "image 1: float64 of shape"),
        (["none.jpg"], "none.jpg"),
    ],
)
def test_what_is_no_face_is_refused(run, faces, message):
    with pytest.raises((InputError, OSError), match=message):
        partialfc.load(run).embed(faces)


def scores_in(path):
    return {name: it["scores"] for name, it in json.loads(path.read_text())["sets"].items()}


def test_the_file_of_results_says_what_they_are_of(run, pack, exported, tmp_path):
    for model in (run, exported):
        done = called(
            "evaluate", model, pack / "unseen.bin", "--json", tmp_path / "scores.json", "--overwrite"
        )
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "scores.json").read_text())
        assert found["format"] == 1 and found["environment"]["torch"] == torch.__version__
        assert found["sets"]["unseen"]["images"] == 40
        file = run / "checkpoints/step_00000030/run.json" if model == run else exported / "model.safetensors"
        for place, digest in (
            (file, found["model"]["sha256"]),
            (pack / "unseen.bin", found["sets"]["unseen"]["sha256"]),
        ):
            assert digest == hashlib.sha256(place.read_bytes()).hexdigest()
        if model == run:
            about = found["model"]["run"]
            assert (about["step"], about["images"], about["identities"]) == (30, 115, 23)
            assert (
                about["pack"] == pack_fingerprint(pack)
                and about["recipe"]["train"]["global_batch_size"] == 24
            )
        else:
            assert found["model"]["run"] is None


def test_evaluate_gives_the_accuracy_of_the_checkpoint(run, tmp_path):
    for path, step in ((run, 30), (run / "checkpoints/step_00000015", 15)):
        done = called(
            "evaluate", path, "--protocol=insightface", "--json", tmp_path / "scores.json", "--overwrite"
        )
        assert done.returncode == 0, done.stderr
        found = scores_in(tmp_path / "scores.json")
        assert found["unseen"].pop("insightface_accuracy") >= 0.9
        found["unseen"].pop("insightface_accuracy_std")
        if step == 30:
            assert found == verification_of(run, 30)
            assert re.search(r"unseen +100.0% \[100.0, 100.0\]", done.stdout), done.stdout
        else:
            assert found.keys() == {"unseen"}


def test_results_into_no_folder_are_refused_before_anything_is_done(run, tmp_path):
    done = called("evaluate", run, "--json", tmp_path / "none/scores.json")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == f"error: {tmp_path}/none/scores.json: the folder {tmp_path}/none does not exist\n"


def test_an_embedding_in_another_precision_is_begun_anew(run, folder, pack, tmp_path):
    usual, half = load(run), load(run, precision="bfloat16")
    assert usual.fingerprint(run) != half.fingerprint(run)
    embed_pack(usual, run, pack, tmp_path)
    before = StoredEmbeddings(tmp_path)[np.arange(5)]
    embed_pack(half, run, pack, tmp_path)
    assert not np.array_equal(StoredEmbeddings(tmp_path)[np.arange(5)], before)


def test_evaluate_takes_a_precision_and_a_batch(run, exported, tmp_path):
    given = ["evaluate", run, "--json", tmp_path / "scores.json", "--overwrite"]
    for options in (["--batch-size", "7"], ["--precision", "bfloat16", "--batch-size", "64"]):
        done = called(*given, *options)
        assert done.returncode == 0, done.stderr
        assert scores_in(tmp_path / "scores.json")["unseen"]["accuracy"] == 1
    faces = [np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)]
    usual, half = (load(run, precision=it).embed(faces) for it in (None, "bfloat16"))
    assert not np.array_equal(usual, half) and (usual * half).sum() > 0.99
    done = called("evaluate", exported / "model.onnx", "--precision", "float16")
    assert done.returncode == 2
    assert (
        "model.onnx: its precision was fixed by the export; --precision is for other weights" in done.stderr
    )


def test_of_a_run_with_a_moving_average_that_is_used(ranks, pack, tmp_path):
    config = config_of(pack, tmp_path / "run", optim={"ema_decay": 0.9}, train={"length": 12})
    (state,) = ranks.run(1, trained, config)
    used = load(tmp_path / "run").network.state_dict()
    assert all(torch.equal(tensor, state[f"average {name}"]) for name, tensor in used.items())
    assert not torch.equal(used["fc.weight"], state["fc.weight"])
    done = called("evaluate", tmp_path / "run", "--json", tmp_path / "scores.json", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert scores_in(tmp_path / "scores.json") == verification_of(tmp_path / "run", 12)
    other = config_of(pack, tmp_path / "run", train={"length": 12})
    assert_refused(ranks, 1, other, "written with a different config: optim.ema_decay 0.9 -> 0.0; restore")


def test_a_folder_is_embedded_and_compared(run, folder, tmp_path):
    done = called("embed", run, folder, tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("out.npz: 15 images")
    with np.load(tmp_path / "out.npz") as found:
        assert found["names"].tolist() == [f"{n}/{i}.jpg" for n in range(3) for i in range(5)]
        similarity = found["embeddings"][0] @ found["embeddings"][7]
    threshold = verification_of(run, 30)["unseen"]["threshold"]
    verdict = "the same person" if similarity > threshold else "different people"
    done = called("compare", run, folder / "0/0.jpg", folder / "1/2.jpg")
    shown, said = done.stdout.splitlines()
    assert float(shown) == pytest.approx(similarity, abs=1e-4)
    assert said == (f"{verdict} (threshold {threshold:.4f} of unseen, false accept rate 0.00%)")
    done = called("compare", run, folder / "0/0.jpg", folder / "0/0.jpg")
    assert done.stdout.startswith("1.0000\nsame person (threshold")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces", "out.npz"]


def test_embedding_that_was_interrupted_is_gone_on_with(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("partialfc.inference.embed_folder._BLOCK", 4)
    recognizer, blocks = load(run), []

    def until_the_third(images):
        blocks.append(len(images))
        if len(blocks) == 3:
            raise KeyboardInterrupt
        return type(recognizer).embed_unchecked(recognizer, images)

    monkeypatch.setattr(recognizer, "embed_unchecked", until_the_third, raising=False)
    with pytest.raises(KeyboardInterrupt):
        embed_folder(recognizer, run, folder, tmp_path / "out.npz")
    assert embed_folder(recognizer, run, folder, tmp_path / "out.npz") == 15
    assert len(blocks) == 5  # two before, two after, and the one that was interrupted
    embed_folder(load(run), run, folder, tmp_path / "whole.npz")
    with np.load(tmp_path / "out.npz") as found, np.load(tmp_path / "whole.npz") as expected:
        np.testing.assert_array_equal(found["embeddings"], expected["embeddings"])


def test_runs_are_drawn_above_each_other(run, tmp_path):
    done = called("plot", run, run, "--out", tmp_path / "runs.png")
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "runs.png")).shape == (320, 1200, 3)


def test_the_newest_checkpoint_is_taken(run):
    last, earlier = load(run).network, load(run / "checkpoints/step_00000015").network
    assert not torch.equal(last.fc.weight, earlier.fc.weight)
    assert (
        resolve_checkpoint(run).name == "step_00000030"
        and resolve_checkpoint(run / "checkpoints/step_00000015").name == "step_00000015"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "none"], "none: expected a run's folder"),
        (["evaluate", "RUN", "none.bin"], "none.bin: No such file"),
        (["evaluate", "a.pth", "a.bin"], "a.pth: the network is not specified; pass --backbone"),
        (
            ["evaluate", "a.pth", "a.bin", "--backbone", "iresnet101"],
            "a.pth: backbone: name: 'iresnet101', expected one of iresnet100, .* did you mean iresnet100",
        ),
        (
            ["evaluate", "a.pth", "a.bin", "--backbone", "iresnet18"],
            "a.pth: weights of a different network; .* missing",
        ),
        (["evaluate", "a.onnx", "a.bin"], "a.onnx: expected ONNX"),
        (["export", "none", "out"], "none: expected a run"),
        (["export", "a.pth", "out"], "a.pth: the network is not specified"),
        (["embed", "RUN", "empty", "out.npz"], "empty: contains no images"),
        (["embed", "RUN", "broken", "out.npz"], "broken/a.jpg: 3 bytes; expected an image"),
        (["compare", "RUN", "broken/a.jpg", "broken/a.jpg"], "broken/a.jpg: 3 bytes; expected an image"),
        (["plot", "none", "--out", "a.png"], "none/metrics.jsonl: No such file"),
        (["plot", "broken", "--out", "a.png"], "broken/metrics.jsonl, line 1: expected a record of a run"),
        (["nonsense"], "partialfc: No such command 'nonsense'; see partialfc --help"),
        (["evaluate"], "partialfc evaluate: Missing argument 'MODEL'; see partialfc evaluate --help"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(1)}, "a.pth")
    Path("a.onnx").write_bytes(b"no network")
    write_pairs(Path("a.bin"))
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.jpg").write_bytes(b"abc")
    Path("broken/metrics.jsonl").write_text("{")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = called(*(run if argument == "RUN" else argument for argument in arguments))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(message, done.stderr), done.stderr


def test_a_run_without_a_checkpoint_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    done = called("export", tmp_path / "run", tmp_path / "out")
    assert done.returncode == 2 and "no checkpoint; expected a folder step_*" in done.stderr


MAINS = [
    path
    for folder in ("tools", "benchmarks", "experiments")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "argparse" in path.read_text() or "partialfc.__main__" in path.read_text()
]


@pytest.mark.parametrize("path", MAINS, ids=lambda path: path.stem)
def test_every_tool_says_what_it_does(path):
    folder = path.parent.name
    done = (
        called_tool(path, "--help") if folder == "tools" else called_module(f"{folder}.{path.stem}", "--help")
    )
    assert done.returncode == 0 and "usage:" in done.stdout.lower()


def test_the_card_of_an_export_is_enough_to_get_its_embeddings(exported, tmp_path):
    """Its code runs in an interpreter that cannot import the package, on images that shrink, grow and keep their size."""
    card = (exported / "README.md").read_text()
    (code,) = (it for it in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "onnxruntime" in it)
    shutil.copy(exported / "model.onnx", tmp_path)
    sizes = {"a.png": (90, 70), "b.png": (20, 41), "c.png": (32, 32), "d.jpg": (112, 112)}
    draws = np.random.default_rng(0)
    for name, (height, width) in sizes.items():
        coarse = draws.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / name), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    (tmp_path / "follow.py").write_text(
        f"import sys\nsys.modules['partialfc'] = None\n{code}\nnp.save('found.npy', embed({list(sizes)!r}))\n"
    )
    subprocess.run([sys.executable, "-I", "follow.py"], cwd=tmp_path, check=True)
    expected = partialfc.load(exported, device="cpu").embed([tmp_path / name for name in sizes])
    cosines = (np.load(tmp_path / "found.npy") * expected).sum(1)
    assert cosines.min() > 0.99999, cosines
    assert len(set(expected[:, 0].tolist())) == len(sizes)
