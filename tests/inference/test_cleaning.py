"""Images that are none of their class, found by a run with sub-centres: planted ones, and the arithmetic by hand."""

import csv

import cv2
import numpy as np
import pytest
import torch
from helpers.faces import face
from helpers.runs import config_of, trained
from torch.nn.functional import normalize

from partialfc.data import RecordDataset
from partialfc.data.packs import pack_writer
from partialfc.data.stored_embeddings import StoredEmbeddings
from partialfc.errors import InputError
from partialfc.inference import cleaning
from partialfc.inference.embed_pack import embed_pack
from partialfc.inference.recognizer import load
from partialfc.inference.weights import resolve_checkpoint
from partialfc.runtime.checkpoint import read_rows, read_tensors

CLASSES, IMAGES, SIZE = 16, 8, 32


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A pack in which the last image of every other class shows somebody else."""
    folder = tmp_path_factory.mktemp("noisy")
    samples = [
        (label, face(label if image < IMAGES - 1 or label % 2 else 100 + label, image, SIZE))
        for label in range(CLASSES)
        for image in range(IMAGES)
    ]
    pack_writer.write_pack(folder, samples, num_classes=CLASSES + 1, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def run(ranks, noisy, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    config = config_of(
        noisy, output, head={"subcenters": 2, "sample_rate": 1.0}, optim={"lr": 0.1}, train={"length": 40}
    )
    ranks.run(2, trained, config)
    return output


def test_images_stand_where_a_plain_loop_finds_them(run, noisy, tmp_path, monkeypatch):
    monkeypatch.setattr(cleaning, "_CLASSES", 7)
    monkeypatch.setattr(cleaning, "_IMAGES", 10)
    recognizer, dataset = load(run), RecordDataset(noisy)
    embed_pack(recognizer, run, noisy, tmp_path)
    embeddings = StoredEmbeddings(tmp_path)
    labels = np.array([dataset.label(image) for image in range(len(dataset))])
    found = cleaning.compute_image_angles(embeddings, labels, resolve_checkpoint(run), recognizer.provenance)
    centers = normalize(
        read_tensors(resolve_checkpoint(run), "head")["centers"].view(CLASSES + 1, 2, -1), dim=2
    )
    for label in range(CLASSES):
        own = np.flatnonzero(labels == label)
        cosines = torch.from_numpy(embeddings[own]) @ centers[label].T
        nearest = cosines.argmax(dim=1)
        dominant = nearest.bincount(minlength=2).argmax()
        assert found.nearest_subcenter[own].tolist() == nearest.tolist()
        expected = torch.rad2deg(cosines[:, dominant].clamp(-1, 1).acos())
        np.testing.assert_allclose(found.angles[own], expected, atol=1e-2)


def test_planted_images_are_dropped_and_the_others_stay(run, noisy, tmp_path):
    kept, dropped = cleaning.clean_pack(load(run), run, noisy, tmp_path, max_angle=43.0)
    before, after = RecordDataset(noisy), RecordDataset(tmp_path)
    planted = {IMAGES * label + IMAGES for label in range(0, CLASSES, 2)}  # keys begin at 1
    with (tmp_path / cleaning.DROPPED_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    listed = [int(row["key"]) for row in rows]
    assert (
        len(planted & set(listed)) >= 7 and len(set(listed) - planted) < IMAGES
    )  # one class is learnt badly
    degrees = [float(row["degrees"]) for row in rows]
    assert degrees == sorted(degrees, reverse=True) and degrees[-1] > 43
    assert (kept, dropped) == (len(after), len(listed)) and kept + dropped == len(before)
    stay = [image for image in range(len(before)) if before.key(image) not in listed]
    assert [(after.label(image), after.encoded_image(image)) for image in range(kept)] == [
        (before.label(image), before.encoded_image(image)) for image in stay
    ]
    assert after.num_classes == CLASSES + 1
    height, width, _ = cv2.imread(str(tmp_path / cleaning.GRID_FILE)).shape
    assert width == 13 * SIZE and height == SIZE * len({row["class"] for row in rows})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dropped.csv", "dropped.png", "property", "train.idx", "train.rec",
    ]  # fmt: skip


def test_what_does_not_go_together_is_refused(run, noisy, pack, tmp_path):
    with pytest.raises(InputError, match=r"not the pack that .* was trained on"):
        cleaning.clean_pack(load(run), run, pack, tmp_path, max_angle=75.0)
    with pytest.raises(InputError, match=r"no image is within 0 degrees of its class"):
        cleaning.clean_pack(load(run), run, noisy, tmp_path, max_angle=0.0)
    with pytest.raises(InputError, match="expected a folder other than the input packs"):
        cleaning.clean_pack(load(run), run, noisy, noisy, max_angle=75.0)
    weights = load(run)
    weights.provenance = None  # as those of a file have none
    with pytest.raises(InputError, match="expected a run trained on"):
        cleaning.clean_pack(weights, run, noisy, tmp_path, max_angle=75.0)
    with pytest.raises(InputError, match=r"contains no head\.nothing"):
        read_rows(resolve_checkpoint(run), "head.nothing", 0, 1)
