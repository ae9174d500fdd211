"""Runs whose class centers follow a teacher: its embeddings of a pack, and what a student learns by them."""

import json
import shutil

import msgspec
import numpy as np
import pytest
from helpers.faces import write_pack
from helpers.runs import assert_refused, assert_same_bits, config_of, curve, trained, whole

from partialfc.data import RecordDataset
from partialfc.data.stored_embeddings import StoredEmbeddings
from partialfc.errors import InputError
from partialfc.inference.embed_pack import embed_pack
from partialfc.inference.recognizer import load

LENGTH = 12


@pytest.fixture(scope="module")
def source(undisturbed):
    """A run that is the teacher."""
    return undisturbed[1][2]


@pytest.fixture(scope="module")
def teacher(source, pack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "embeddings"
    assert embed_pack(load(source), source, pack, folder) == 115
    return folder


def student(pack, teacher, output, **sections):
    taught = {
        "distillation": {"teacher_embeddings": str(teacher)},
        "train": {"length": LENGTH, "micro_batch_size": 4},
    }
    return config_of(pack, output, **taught | sections)


def test_embeddings_are_those_of_the_images_in_the_order_of_the_pack(source, pack, teacher):
    dataset, found = RecordDataset(pack), StoredEmbeddings(teacher)
    places = np.array([114, 3, 3, 0])
    expected = load(source).embed([dataset[place][0] for place in places])
    np.testing.assert_allclose(found[places], expected, atol=2e-4)
    assert found.embedding_size == 16 and found[places].dtype == np.float32


def test_embedding_a_pack_that_was_interrupted_is_gone_on_with(source, pack, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("partialfc.inference.embed_pack._BLOCK", 50)
    recognizer, calls = load(source), []

    def until_the_tenth(faces):
        calls.append(len(faces))
        if len(calls) == 10:  # the first finds out the width, and a block of 50 takes four
            raise KeyboardInterrupt
        return type(recognizer).embed_unchecked(recognizer, faces)

    monkeypatch.setattr(recognizer, "embed_unchecked", until_the_tenth, raising=False)
    with pytest.raises(KeyboardInterrupt):
        embed_pack(recognizer, source, pack, tmp_path)
    with pytest.raises(InputError, match="100 of 115 images are embedded; rerun partialfc embed to resume"):
        StoredEmbeddings(tmp_path)
    embed_pack(recognizer, source, pack, tmp_path)
    assert len(calls) == 12
    images = np.arange(115)
    np.testing.assert_array_equal(StoredEmbeddings(tmp_path)[images], StoredEmbeddings(teacher)[images])
    write_pack(tmp_path / "other", 2, 3)
    embed_pack(recognizer, source, tmp_path / "other", tmp_path)  # from the start
    assert json.loads((tmp_path / "about.json").read_text())["done"] == 6


def test_numbers_that_are_not_those_that_were_written_are_refused(teacher, tmp_path):
    for name in ("about.json", "embeddings.npy"):
        shutil.copy(teacher / name, tmp_path)
    numbers, whole_file = tmp_path / "embeddings.npy", (teacher / "embeddings.npy").read_bytes()
    np.save(numbers, np.zeros((115, 15), np.float16))
    with pytest.raises(
        InputError, match=r"embeddings\.npy: float16 of shape \(115, 15\); expected .* \(115, 16\)"
    ):
        StoredEmbeddings(tmp_path)
    for content in (whole_file[:-1], whole_file[:40], b"", b"something else"):
        numbers.write_bytes(content)
        with pytest.raises(InputError, match=r"embeddings\.npy"):
            StoredEmbeddings(tmp_path)
    numbers.unlink()
    with pytest.raises(FileNotFoundError, match=r"embeddings\.npy"):
        StoredEmbeddings(tmp_path)


def test_an_embedding_that_is_not_finite_is_refused_with_its_place(source, pack, tmp_path, monkeypatch):
    recognizer = load(source)

    def broken(faces):
        found = type(recognizer).embed_unchecked(recognizer, faces)
        found[2:] = np.nan
        return found

    monkeypatch.setattr(recognizer, "embed_unchecked", broken, raising=False)
    with pytest.raises(InputError, match=r"that are not, the first of image 2; the network has diverged"):
        embed_pack(recognizer, source, pack, tmp_path)


def test_a_student_learns_the_same_at_any_world_size_and_after_a_stop(ranks, pack, teacher, tmp_path):
    states, low = (
        {},
        {"lr": 0.005},
    )  # at higher rates the kinks of PReLU amplify rounding beyond the tolerance
    for world_size in (1, 3):
        config = student(pack, teacher, tmp_path / f"W{world_size}", optim=low)
        states[world_size] = whole(ranks.run(world_size, trained, config))
    np.testing.assert_allclose(curve(tmp_path / "W1"), curve(tmp_path / "W3"), rtol=1e-4)
    assert set(states[1]).isdisjoint({"momentum", "first_moment"})
    stopped = student(pack, teacher, tmp_path / "stopped", checkpoint={"every": 5}, optim=low)
    ranks.run(1, trained, stopped, 8)
    assert_same_bits(whole(ranks.run(1, trained, stopped)), states[1])
    assert curve(tmp_path / "stopped") == curve(tmp_path / "W1")


def test_image_by_image_a_student_comes_nearer_to_its_teacher(ranks, pack, teacher, tmp_path):
    taught, dataset = StoredEmbeddings(teacher)[np.arange(115)], RecordDataset(pack)
    nearness = {}
    for weight, world_size in ((0.0, 1), (50.0, 1), (50.0, 3)):
        output = tmp_path / f"{weight} {world_size}"
        distillation = {"teacher_embeddings": str(teacher), "cosine_weight": weight}
        sections = {"distillation": distillation, "train": {"length": 40, "micro_batch_size": 4}}
        ranks.run(world_size, trained, student(pack, teacher, output, **sections))
        learnt = load(output).embed([dataset[image][0] for image in range(115)])
        nearness[weight] = (learnt * taught).sum(axis=1).mean()
    assert 1 - nearness[50.0] < 0.5 * (1 - nearness[0.0])
    np.testing.assert_allclose(curve(tmp_path / "50.0 1"), curve(tmp_path / "50.0 3"), rtol=1e-4)


def test_centres_are_the_means_of_their_images_by_the_teacher(ranks, pack, teacher, tmp_path):
    """A student that hardly agrees leaves nothing of what a center was."""
    state = whole(ranks.run(2, trained, student(pack, teacher, tmp_path / "run", optim={"lr": 1e-9})))
    dataset, found = RecordDataset(pack), StoredEmbeddings(teacher)
    classes = np.array([dataset.label(image) for image in range(115)])
    embeddings = found[np.arange(115)]
    for label, center in enumerate(state["centers"].numpy()):
        assert (embeddings[classes == label] @ center).max() > 0.9


def test_a_teacher_of_another_pack_or_width_is_refused(ranks, pack, teacher, tmp_path):
    other, output = tmp_path / "other", tmp_path / "run"
    write_pack(other, 23, 5, 32, first=40)
    assert_refused(
        ranks,
        2,
        student(other, teacher, output),
        "embeddings of a pack that differs from .*other; run partialfc embed",
    )
    wide = student(pack, teacher, output, backbone={"embedding_size": 32})
    assert_refused(
        ranks, 1, wide, "backbone.embedding_size: 32; expected 16, as in distillation.teacher_embeddings"
    )
    assert_refused(ranks, 1, student(pack, tmp_path, output), "expected a folder written by partialfc embed")
    with pytest.raises(
        msgspec.ValidationError, match=r"head\.optim: incompatible with distillation\.teacher_embeddings"
    ):
        student(pack, teacher, output, head={"optim": {"name": "sgd"}})
    (tmp_path / "about.json").write_text("{}")
    assert_refused(
        ranks, 1, student(pack, tmp_path, output), "about.json: expected a file of partialfc embed"
    )
