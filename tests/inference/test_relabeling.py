"""Identities that are one person, and such as are two: by hand, planted in a pack, and what becomes of the pack."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.calling import called
from helpers.faces import face
from helpers.runs import config_of, trained
from torch.nn.functional import normalize

from partialfc.data import RecordDataset
from partialfc.data.packs.pack_writer import write_pack
from partialfc.errors import InputError
from partialfc.inference import relabeling
from partialfc.inference.recognizer import load
from partialfc.inference.relabeling import (
    DuplicateIdentities,
    MixedIdentity,
    compute_labels,
    find_duplicate_identities,
    relabel_pack,
    split_in_two,
)

SIZE, IMAGES = 32, 6
# Label 3 has the identity of label 9, too; label 5 has images of two.
IDENTITIES = [0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 10]
OTHER = 30


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    samples = [
        (label, face(OTHER if label == 5 and image >= 4 else identity, image + 20 * (label == 9), SIZE))
        for image in range(IMAGES)
        for label, identity in enumerate(IDENTITIES)
    ]
    write_pack(folder, samples, num_classes=len(IDENTITIES), size=SIZE)
    return folder


@pytest.fixture(scope="module")
def run(ranks, tmp_path_factory) -> Path:
    """Trained on other people."""
    folder, output = tmp_path_factory.mktemp("others"), tmp_path_factory.mktemp("run")
    samples = [(label, face(200 + label, image, SIZE)) for label in range(40) for image in range(5)]
    write_pack(folder, samples, num_classes=40, size=SIZE)
    config = config_of(folder, output, head={"sample_rate": 1.0}, optim={"lr": 0.1}, train={"length": 80})
    ranks.run(2, trained, config)
    return output


def test_alike_are_the_pairs_that_all_pairs_say(monkeypatch):
    monkeypatch.setattr(relabeling, "_ROWS", 7)
    monkeypatch.setattr(relabeling, "_COLUMNS", 10)
    means = normalize(torch.randn(53, 4))
    means[5] = 0
    cosines = means @ means.T
    expected = [
        (one, other) for one in range(53) for other in range(one + 1, 53) if cosines[one, other] >= 0.7
    ]
    found = list(find_duplicate_identities(means, 0.7))
    assert sorted((it.first, it.second) for it in found) == expected and len(expected) > 10
    for it in found:
        assert it.cosine == pytest.approx(float(cosines[it.first, it.second]), abs=1e-6)


def around(center: list[float], count: int, spread: float, seed: int) -> np.ndarray:
    rows = np.array(center) + spread * np.random.default_rng(seed).normal(size=(count, len(center)))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_two_people_are_told_and_one_is_not():
    left, right = around([1, 0, 0, 0], 5, 0.1, 0), around([0, 1, 0, 0], 3, 0.1, 1)
    mixed = np.concatenate([left[:2], right, left[2:]])
    part, cosine = split_in_two(mixed)
    assert part.tolist() == [False, False, True, True, True, False, False, False]
    means = [rows.sum(0) / np.linalg.norm(rows.sum(0)) for rows in (left, right)]
    assert cosine == pytest.approx(float(means[0] @ means[1]), abs=1e-5)
    assert split_in_two(left)[1] > 0.9
    alone = np.concatenate([left, right[:1]])
    assert split_in_two(alone) is None  # one image is no person
    wide = np.eye(16, dtype=np.float32)
    assert (
        split_in_two(np.concatenate([np.repeat(wide[:1], 9, axis=0), wide[1:9]])) is None
    )  # of eight people, one image each
    assert split_in_two(np.repeat(left[:1], 4, axis=0)) is None  # of equal ones there are no parts


def test_new_labels_by_hand():
    labels = np.array([0, 1, 2, 3, 4, 5, 5, 5, 1])
    alike = [DuplicateIdentities(1, 3, 0.9), DuplicateIdentities(3, 4, 0.9)]
    new, origins = compute_labels(labels, 7, alike, [MixedIdentity(5, np.array([5, 7]), 0.0)])
    assert new.tolist() == [0, 1, 2, 1, 1, 5, 3, 5, 1]
    assert origins == [0, 1, 2, 5, 6, None]


def test_planted_identities_are_found_and_the_pack_is_right(run, pack, tmp_path):
    done = relabel_pack(load(run), run, pack, tmp_path, merge_threshold=0.9, split_threshold=0.6)
    assert (done.num_merged, done.num_split) == (1, 1)
    assert (done.num_identities, done.num_images) == (len(IDENTITIES), IMAGES * len(IDENTITIES))
    before, after = RecordDataset(pack), RecordDataset(tmp_path)
    for sample in range(len(before)):
        assert after.encoded_image(sample) == before.encoded_image(sample)
        old, image = before.label(sample), sample // len(IDENTITIES)
        expected = 3 if old == 9 else old - (old > 9)
        assert after.label(sample) == (10 if old == 5 and image >= 4 else expected)
    assert (tmp_path / relabeling.MAP_FILE).read_text().split() == [*map(str, [*range(9), 10]), "new"]
    with (tmp_path / relabeling.LISTING_FILE).open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[:3] for row in rows[1:]] == [["3", "one person", "9"], ["5", "two people", "50 61"]]
    assert cv2.imread(str(tmp_path / relabeling.GRID_FILE)).shape == (2 * SIZE, 15 * SIZE, 3)
    again = (tmp_path / "train.rec").read_bytes()
    assert relabel_pack(load(run), run, pack, tmp_path, merge_threshold=0.9, split_threshold=0.6) == done
    assert (tmp_path / "train.rec").read_bytes() == again


def test_images_of_several_sizes_are_drawn_at_one(run, tmp_path):
    samples = [
        (label, face(3, image + 6 * label, SIZE + 8 * image)) for image in range(3) for label in (0, 1)
    ]
    write_pack(tmp_path / "pack", samples, size=SIZE)
    assert (
        relabel_pack(
            load(run), run, tmp_path / "pack", tmp_path / "out", merge_threshold=0.9, split_threshold=-1.0
        ).num_merged
        == 1
    )
    assert cv2.imread(str(tmp_path / "out" / relabeling.GRID_FILE)).shape == (SIZE, 15 * SIZE, 3)


def test_the_packs_own_folder_is_refused(run, pack):
    with pytest.raises(InputError, match="expected a folder other than the input packs"):
        relabel_pack(load(run), run, pack, pack, merge_threshold=0.9, split_threshold=0.6)


def test_a_network_that_finds_all_alike_is_refused(run, pack, tmp_path):
    with pytest.raises(
        InputError,
        match=r"44 pairs of 11 identities have a cosine of at least -1; pass a higher --merge-threshold",
    ):
        relabel_pack(load(run), run, pack, tmp_path, merge_threshold=-1.0, split_threshold=-1.0)
    assert not (tmp_path / "train.rec").exists()


def test_the_command_says_what_was_done(run, pack, tmp_path):
    done = called(
        "relabel", run, pack, tmp_path / "out", "--merge-threshold", "0.9", "--split-threshold", "-1"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"{tmp_path / 'out'}: 66 images of 10 identities; 1 identities merged, 0 split ("
        f"{tmp_path / 'out/identities.csv'})\n"
    )
