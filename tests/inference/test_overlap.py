"""What a set and a pack share: planted images and people, what is left of the set, and what is written."""

import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.calling import called
from helpers.faces import face
from helpers.runs import config_of, trained

from partialfc.data import images
from partialfc.data.packs.pack_writer import write_pack
from partialfc.data.packs.pairs import write_pairs
from partialfc.errors import InputError
from partialfc.evaluation.gallery import load_gallery
from partialfc.evaluation.metrics import verify
from partialfc.evaluation.pairs import load_pairs
from partialfc.inference.overlap import EMBEDDINGS_FOLDER, PersonMatcher, find_overlaps
from partialfc.inference.recognizer import load

SIZE = 112
PAIRS = 20
# Of the pairs: 0 has an image of the pack, byte for byte; 1 one that was encoded anew, 2 one that is mirrored; 3 and 4 show
# people of the pack.
ENCODED, MIRRORED = (images.decode(face(100 + pair, 0, SIZE)) for pair in (1, 2))


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    samples = [(label, face(label, image, SIZE)) for label in range(12) for image in range(4)]
    samples += [
        (12, face(100, 0, SIZE)),
        (12, images.encode_jpeg(ENCODED, 70)),
        (13, images.encode_jpeg(np.ascontiguousarray(MIRRORED[:, ::-1]), 90)),
    ]
    write_pack(folder, samples, num_classes=14, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    same = [pair % 2 == 0 for pair in range(PAIRS)]
    people = [[100 + pair, 100 + pair + 50 * (not same[pair])] for pair in range(PAIRS)]
    people[3], people[4] = [5, 153], [7, 7]
    path = tmp_path_factory.mktemp("sets") / "lfw.bin"
    write_pairs(
        path,
        [face(who, 7 * (who < 50) + side, SIZE) for both in people for side, who in enumerate(both)],
        same,
    )
    return path


@pytest.fixture(scope="module")
def run(ranks, pack, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run")
    config = config_of(pack, output, head={"sample_rate": 1.0}, optim={"lr": 0.1}, train={"length": 60})
    ranks.run(1, trained, config)
    return output


def test_images_of_a_set_are_found_however_they_are_encoded(pack, pairs, tmp_path):
    found = find_overlaps(pack, [load_pairs(pairs)], tmp_path / "out")["lfw"]
    assert [(it.image, it.sample, it.match_type) for it in found.matches] == [
        (0, 48, "bytes"),
        (2, 49, "hash"),
        (4, 50, "hash"),
    ]
    assert found.matches[0].distance_or_cosine == 0 and not found.scores
    assert (found.count("bytes"), found.count("bytes", "hash"), found.count("person")) == (1, 3, 0)
    with (tmp_path / "out/lfw.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:2] == [
        ["image", "found by", "key", "class", "bits or cosine"],
        ["pair 0, image 0", "bytes", "49", "12", "0"],
    ]
    assert len(rows) == 4 and rows[3][:4] == ["pair 2, image 0", "hash", "51", "13"]
    assert cv2.imread(str(tmp_path / "out/lfw.png")).shape == (2 * SIZE, 16 * SIZE, 3)


def test_people_of_a_set_are_found_and_what_is_left_is_scored(run, pack, pairs, tmp_path):
    one, recognizer = load_pairs(pairs), load(run)
    size = recognizer.network.input_size
    embeddings = recognizer.embed([one.pixels(it, size) for it in range(len(one))])
    own = recognizer.embed(
        [images.decode(face(label, image, SIZE), size) for label in (5, 7) for image in range(4)]
    )
    means = own.reshape(2, 4, -1).sum(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    to_means = {6: embeddings[6] @ means[0], 8: embeddings[8] @ means[1], 9: embeddings[9] @ means[1]}
    judge = PersonMatcher(recognizer, run, min(to_means.values()) - 1e-3)
    found = find_overlaps(pack, [one], tmp_path, judge)["lfw"]
    people = {it.image: it for it in found.matches if it.match_type == "person"}
    assert people.keys() >= to_means.keys() and people.keys() < set(range(len(one)))
    for image, cosine in to_means.items():
        assert people[image].distance_or_cosine == pytest.approx(cosine, abs=1e-3)
        assert people[image].sample // 4 == (5 if image == 6 else 7)
    assert list(found.scores) == ["lfw", "lfw without its images", "lfw without its images and people"]
    left = [it for it in range(PAIRS) if it > 2]
    rows = [row for pair in left for row in (2 * pair, 2 * pair + 1)]
    expected = one.exclude({0, 2, 4})
    assert expected[1] == rows and expected[0].is_same.tolist() == one.is_same[left].tolist()
    unit = (embeddings[rows][0::2] * embeddings[rows][1::2]).sum(axis=1)
    scores = found.scores["lfw without its images"]
    assert scores["accuracy"] == verify(unit, one.is_same[left])["accuracy"]
    before = (tmp_path / EMBEDDINGS_FOLDER / "embeddings.npy").stat().st_mtime_ns
    assert find_overlaps(pack, [one], tmp_path, judge)["lfw"] == found
    assert (
        tmp_path / EMBEDDINGS_FOLDER / "embeddings.npy"
    ).stat().st_mtime_ns == before  # the pack is not embedded again


def test_the_packs_own_folder_is_refused(pack, pairs):
    with pytest.raises(InputError, match="expected a folder other than the input packs"):
        find_overlaps(pack, [load_pairs(pairs)], pack)


def test_a_gallery_goes_on_without_images(pack, tmp_path):
    for place, name, content in (
        ("gallery", "ann", face(100, 0, SIZE)),
        ("gallery", "bea", face(200, 0, SIZE)),
        ("probe", "ann", face(100, 1, SIZE)),
        ("probe", "bea", face(200, 1, SIZE)),
    ):
        path = tmp_path / "office" / place / name / "0.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    gallery = load_gallery(tmp_path / "office")
    found = find_overlaps(pack, [gallery], tmp_path / "out")["office"]
    assert [(it.image, it.match_type) for it in found.matches] == [(0, "bytes")]
    left, kept = gallery.exclude({0})
    assert kept == [1, 2, 3] and left.gallery_size == 1 and left.subjects.tolist() == [1, 0, 1]
    assert [path.parent.name for path in left.files] == ["bea", "ann", "bea"]


def test_the_command_says_what_was_found(run, pack, pairs, tmp_path):
    done = called("overlap", pack, pairs, tmp_path / "out", "--model", run, "--min-cosine", "0.999")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"lfw: 3 of 40 images are in {pack} (1 byte-identical; ")
    assert "lfw without its images and people" in done.stdout and " accuracy " in done.stdout
    done = called("overlap", pack, pack, tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "expected a .bin" in done.stderr
    (tmp_path / "other").mkdir()
    done = called("overlap", pack, pairs, shutil.copy(pairs, tmp_path / "other"), tmp_path / "out")
    assert done.returncode == 2 and "two sets are named lfw" in done.stderr
    write_several(tmp_path / "rfw", pairs)
    done = called("overlap", pack, tmp_path / "rfw", tmp_path / "out")
    assert (
        done.returncode == 2
        and "rfw: expected a .bin file, or a folder of gallery/ and probe/" in done.stderr
    )


def write_several(folder: Path, pairs: Path) -> None:
    folder.mkdir()
    for name in ("african", "asian"):
        shutil.copy(pairs, folder / f"{name}.bin")


def test_a_set_of_which_nothing_is_left_says_so(run, pack, tmp_path):
    write_pairs(tmp_path / "small.bin", [face(100, 0, SIZE)] * 20, [True] * 10)
    done = called("overlap", pack, tmp_path / "small.bin", tmp_path / "out", "--model", run)
    assert done.returncode == 0, done.stderr
    assert "small without its images: too few pairs left to score\n" in done.stdout
