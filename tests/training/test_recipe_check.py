"""`check RECIPE` opens all files that the run would open, and names the one that the run would refuse."""

import shutil

import pytest
from helpers.faces import write_pack, write_pairs
from helpers.runs import CLASSES, SIZE, config_of

from partialfc.errors import InputError
from partialfc.inference.embed_pack import embed_pack
from partialfc.inference.recognizer import load
from partialfc.training.recipe_check import open_run_files


@pytest.fixture
def run(undisturbed):
    return undisturbed[1][2]


@pytest.fixture
def settings(run, pack, tmp_path):
    """Sections of a recipe that names a file of every kind."""
    embed_pack(load(run), run, pack, tmp_path / "embeddings")
    write_pairs(tmp_path / "other.bin", 10, SIZE)
    (tmp_path / "map.txt").write_text("".join(f"{it}\n" for it in range(CLASSES)))
    return {
        "evaluation": {"sets": (str(tmp_path / "other.bin"),)},
        "init": {
            "backbone": str(run),
            "centers": {"from": str(run), "map": str(tmp_path / "map.txt")},
        },
        "distillation": {"teacher_embeddings": str(tmp_path / "embeddings")},
    }


def test_every_file_is_named(run, pack, settings, tmp_path):
    config = config_of(pack, tmp_path / "out", **settings)
    assert list(open_run_files(config)) == [
        f"{pack}: 115 images of 23 identities",
        f"{pack}/unseen.bin: evaluation set unseen, 40 images",
        f"{tmp_path}/other.bin: evaluation set other, 20 images",
        f"{run}: weights fit",
        f"{tmp_path}/embeddings: teacher embeddings of size 16",
        f"init.centers: centers of {run} fit",
        f"not read: images (partialfc check {pack})",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("other.bin", b"", "other.bin"),
        ("map.txt", b"1\n", "map.txt: 1 lines; expected one per identity"),
        ("embeddings/embeddings.npy", b"", "embeddings.npy: expected an array"),
    ],
)
def test_a_damaged_file_is_named(pack, settings, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(open_run_files(config_of(pack, tmp_path / "out", **settings)))


def test_embeddings_of_another_pack_are_refused(settings, tmp_path):
    write_pack(tmp_path / "pack", CLASSES, 2, SIZE)
    with pytest.raises(InputError, match="embeddings of a pack that differs from"):
        list(open_run_files(config_of(tmp_path / "pack", tmp_path / "out", **settings)))


def test_a_checkpoint_that_the_run_would_resume_from(run, pack, tmp_path):
    shutil.copytree(run, tmp_path / "out", symlinks=True)
    settings = {"checkpoint": {"every": 15}}
    lines = list(open_run_files(config_of(pack, tmp_path / "out", **settings)))
    assert f"{tmp_path}/out/checkpoints/step_00000030: the run would resume at step 30" in lines
    assert lines[-1].endswith("tensors of the checkpoint")
    other = {**settings, "optim": {"lr": 0.03}}
    with pytest.raises(InputError, match=r"written with a different config: optim\.lr 0\.02 -> 0\.03"):
        list(open_run_files(config_of(pack, tmp_path / "out", **other)))
    other["checkpoint"] = {"every": 15, "on_config_change": "allow"}
    lines = list(open_run_files(config_of(pack, tmp_path / "out", **other)))
    assert any(it.endswith("at step 30; optim.lr 0.02 -> 0.03") for it in lines)
    with pytest.raises(InputError, match=r"checkpoint\.resume: never, but"):
        list(open_run_files(config_of(pack, tmp_path / "out", checkpoint={"resume": "never"})))
    with pytest.raises(InputError, match="nowhere"):
        list(open_run_files(config_of(pack, tmp_path / "new", checkpoint={"resume": "nowhere"})))
