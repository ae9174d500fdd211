"""What is exported of a run: the same network for others, and a card that says where it is from."""

import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.calling import called
from helpers.faces import face
from helpers.runs import verification_of
from huggingface_hub import ModelCard

import partialfc
from partialfc.inference.recognizer import load


@pytest.mark.parametrize("name", ["", "model.onnx", "model.safetensors"])
def test_what_is_exported_has_the_same_accuracy(run, pack, exported, tmp_path, name):
    done = called("evaluate", exported / name, pack / "unseen.bin", "--json", tmp_path / "scores.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["sets"]["unseen"]["scores"] == pytest.approx(verification_of(run, 30)["unseen"], abs=1e-6)


def test_weights_and_card_say_where_they_are_from(run, exported):
    weights = safetensors.torch.load_file(exported / "model.safetensors")
    (network,) = (load(run).network,)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    card = ModelCard.load(exported / "README.md")
    assert "Trained for 30 steps on 115 images of 23 identities" in card.text and "fingerprint" in card.text
    assert "| unseen | 100.0% [100.0, 100.0] |" in card.text
    assert "order: paper" in card.text  # the recipe
    found = {(it.dataset_name, it.metric_name): it.metric_value for it in card.data.eval_results}
    scores = verification_of(run, 30)["unseen"]
    assert found == {("unseen", name): pytest.approx(scores[name]) for name in ("accuracy", "auc")}
    assert card.data.library_name == "partialfc" and card.data.model_name == "iresnet_tiny-pack0"
    described = json.loads((exported / "config.json").read_text())
    assert described["verification"] == verification_of(run, 30) and described["embedding"] == 16
    assert described["trained"]["steps"] == 30 and described["backbone"]["name"] == "iresnet_tiny"


def test_what_is_exported_may_be_read_by_others(exported):
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in exported.iterdir()} == {0o666 & ~mask}


def test_an_exported_folder_gives_the_runs_verdict(run, exported, folder):
    pair = folder / "0/0.jpg", folder / "1/2.jpg"
    assert called("compare", exported, *pair).stdout == called("compare", run, *pair).stdout != ""


STRANGER = """
import sys
import cv2, numpy, onnxruntime
assert not any(name.startswith("partialfc") for name in sys.modules)
session = onnxruntime.InferenceSession(sys.argv[1])
(images,) = session.get_inputs()
size = images.shape[2]
def embedded(path):
    pixels = cv2.resize(cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB), (size, size))
    both = numpy.stack([pixels, pixels[:, ::-1]]).transpose(0, 3, 1, 2)
    (found,) = session.run(None, {images.name: ((both.astype("float32") - 127.5) / 127.5)})
    return found.sum(0) / numpy.linalg.norm(found.sum(0))
print(embedded(sys.argv[2]) @ embedded(sys.argv[3]))
"""


def test_a_script_that_knows_nothing_of_us_uses_the_onnx_file(run, exported, folder):
    pair = [str(folder / name) for name in ("0/0.jpg", "1/2.jpg")]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, exported / "model.onnx", *pair],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    first, second = partialfc.load(run).embed(pair)
    assert float(done.stdout) == pytest.approx(first @ second, abs=1e-4)


def test_onnx_takes_any_batch_and_gives_torchs_embeddings(run, exported):
    images = [
        cv2.imdecode(np.frombuffer(face(1, image), np.uint8), cv2.IMREAD_COLOR_RGB) for image in range(7)
    ]
    for count in (1, 7):
        found = load(exported / "model.onnx").embed(images[:count])
        np.testing.assert_allclose(found, load(run).embed(images[:count]), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"verification": {"lfw": {"accuracy": "high"}}}'],
    ids=["empty", "cut", "list", "text"],
)
def test_a_damaged_description_is_named(exported, folder, tmp_path, content):
    shutil.copytree(exported, tmp_path / "exported")
    (tmp_path / "exported/config.json").write_bytes(content)
    done = called("compare", tmp_path / "exported", folder / "0/0.jpg", folder / "1/2.jpg")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert re.search(r"exported/config.json: expected a file of partialfc export: ", done.stderr), done.stderr
