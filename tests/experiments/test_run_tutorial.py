"""experiments/run_tutorial.py prepares what the tutorial says is at hand; and where real faces are, all of it runs."""

import os
import subprocess
import sys

import pytest
from helpers.faces import face

from experiments import run_tutorial

FACES = os.environ.get("PARTIALFC_FACES")


def test_what_is_at_hand(tmp_path):
    for name in ("train/ann/1.jpg", "val/Bea/Bea_0001.jpg", "photos/Bea_van_C_0002.jpg"):
        (tmp_path / "given" / name).parent.mkdir(parents=True)
        (tmp_path / "given" / name).write_bytes(face(0, 0))
    for name in ("pairs_val.txt", "yunet.onnx"):
        (tmp_path / "given" / name).touch()
    folder = tmp_path / "week"
    run_tutorial.prepare(tmp_path / "given", folder)
    for name in (
        "faces/ann/1.jpg",
        "validation/Bea/Bea_0001.jpg",
        "photographs/Bea_van_C/Bea_van_C_0002.jpg",
    ):
        assert (folder / name).read_bytes() == face(0, 0)
    assert (folder / "pairs.txt").exists() and (folder / "yunet.onnx").exists()
    assert run_tutorial.run_block("sh", "ls pairs.txt\npartialfc --version\n", folder) == 0
    assert run_tutorial.run_block("python", "raise SystemExit(3)\n", folder) == 3


@pytest.mark.parametrize(
    ("out", "message"),
    [("week", "none: no train, val, "), (".", "is there already; expected a folder to be made")],
)
def test_what_is_missing_is_said(tmp_path, out, message):
    command = [sys.executable, "-m", "experiments.run_tutorial", tmp_path / "none", "--out", tmp_path / out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.skipif(
    FACES is None, reason="wants PARTIALFC_FACES, a folder of faces as experiments/run_tutorial.py takes it"
)
def test_all_of_it_on_real_faces(tmp_path):
    command = [sys.executable, "-m", "experiments.run_tutorial", FACES, "--out", tmp_path / "week"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "stopped" in done.stdout and "200 faces of 200 photos" in done.stdout
