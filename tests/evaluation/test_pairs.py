"""Verification sets: every way they are pickled, and nothing in them runs."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.faces import write_pairs
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize as sklearn_normalize

from partialfc.errors import InputError
from partialfc.evaluation.pairs import load_pairs
from partialfc.evaluation.sets import UnusableEmbeddingsError

IMAGES = [bytes([65 + place]) * 3 for place in range(20)]
SAME = [True, False] * 5


def saved(tmp_path: Path, content: object, protocol: int = 4) -> Path:
    path = tmp_path / "lfw.bin"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["bytes", "arrays", "columns", "array of flags"])
def test_every_protocol_and_kind_of_content(tmp_path, protocol, kind):
    images: list = IMAGES
    if kind in ("arrays", "columns"):
        shape = (-1, 1) if kind == "columns" else -1  # as imencode of OpenCV 4.5.2 and older returns them
        images = [np.frombuffer(image, np.uint8).reshape(shape) for image in IMAGES]
    same = np.array(SAME) if kind == "array of flags" else SAME
    pairs = load_pairs(saved(tmp_path, (images, same), protocol))
    assert [bytes(image) for image in pairs.images] == IMAGES
    assert pairs.is_same.tolist() == SAME and pairs.is_same.dtype == bool and pairs.name == "lfw"


def test_a_pickle_of_python_2_with_strings_and_an_array(tmp_path):
    """Protocol 2 as python 2 writes it: SHORT_BINSTRING images, numpy.core.multiarray._reconstruct with b'b'."""
    strings = b"".join(b"U" + bytes([len(image)]) + image for image in IMAGES[:-1])
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x03TTTtb"
    )
    flags = b"](" + b"\x88\x89" * 5 + b"e"
    pairs = load_pairs(saved(tmp_path, b"\x80\x02](" + strings + array + b"e" + flags + b"\x86."))
    assert [bytes(image) for image in pairs.images] == IMAGES and pairs.is_same.tolist() == SAME


class Runs:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_file_that_names_anything_else_is_refused_and_runs_nothing(tmp_path, protocol):
    path = saved(tmp_path, (IMAGES, [Runs(tmp_path / "ran")]), protocol)
    with pytest.raises(
        InputError, match=r"lfw.bin: names [\w.]+; expected bytes, numpy arrays and lists only"
    ):
        load_pairs(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["numpy\nload", "numpy.core.multiarray\nfromfile", "os\nsystem", "numpy\nndarray.tofile"]
)
def test_other_names_of_numpy_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="names"):
        load_pairs(saved(tmp_path, b"c" + name.encode() + b"\n."))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"no pickle", "expected a verification set, the pickle of .*, found a damaged or different file"),
        (b"<html></html>", "found a web page"),
        (b"\x1f\x8b\x08\x00", "found a compressed file; decompress it first"),
        (pickle.dumps((IMAGES, SAME))[:-20], "found an incomplete copy of one"),
        (pickle.dumps((IMAGES, SAME))[:60], "found an incomplete copy of one"),
        ({"images": IMAGES}, "found a damaged or different file"),
        (IMAGES, "the pickle of a list; expected"),
        ((IMAGES, SAME, 1), "the pickle of a tuple; expected"),
        ((IMAGES, 7), "20 and no list images and issame"),
        ((IMAGES[:-1], SAME), "19 and 10 images and issame; expected two images per pair"),
        (
            (IMAGES[:4], SAME[:2]),
            "4 and 2 images and issame; expected two images per pair, and at least 10 pairs",
        ),
        (([*IMAGES[:-1], "text"], SAME), "image 19 is a str"),
        (
            ([*IMAGES[:-1], np.zeros((2, 2), np.uint8)], SAME),
            "image 19 is a ndarray, expected bytes or a uint8 array",
        ),
    ],
)
def test_what_is_no_verification_set_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        load_pairs(saved(tmp_path, content))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_embeddings_that_are_not_finite_or_all_alike_are_refused(tmp_path, value):
    write_pairs(tmp_path / "some.bin")
    pairs = load_pairs(tmp_path / "some.bin")
    embeddings = torch.nn.functional.normalize(torch.randn(len(pairs), 8))
    embeddings[3, 2] = embeddings[5, 0] = value
    with pytest.raises(
        UnusableEmbeddingsError, match=r"some: expected finite embeddings, got 2 of 40 that are not"
    ):
        pairs.evaluate(embeddings)
    for alike in (torch.zeros(40, 8), torch.ones(40, 8) * torch.arange(1, 41)[:, None]):
        with pytest.raises(UnusableEmbeddingsError, match="some: expected embeddings that differ, got 40"):
            pairs.evaluate(alike)


def test_a_set_of_one_kind_says_so(tmp_path):
    write_pairs(tmp_path / "some.bin")
    pairs = dataclasses.replace(load_pairs(tmp_path / "some.bin"), is_same=np.ones(20, bool))
    found = pairs.evaluate(torch.randn(40, 8))
    assert (
        found.warning
        == "some: scores are undefined: all 20 pairs show the same person; expected pairs of both kinds"
    )
    assert found.summary == "accuracy -, AUC -" and not list(found.figures)
    assert all(map(np.isnan, pairs.score_insightface(torch.randn(40, 8)).values()))


@pytest.mark.parametrize("flag", [-1, 2, "True", 0.0, None])
def test_a_flag_that_is_no_boolean_is_refused(tmp_path, flag):
    images = IMAGES
    with pytest.raises(InputError, match="issame 3: expected true or false, got"):
        load_pairs(saved(tmp_path, (images, [True, False, True, flag, *[False] * 6])))


def theirs(embeddings: np.ndarray, is_same: list[bool]) -> tuple[float, float]:
    """The accuracy of the public script, step by step: scikit-learn's folds, a threshold's accuracy by counting."""
    distances = [float(((a - b) ** 2).sum()) for a, b in zip(embeddings[::2], embeddings[1::2], strict=True)]
    thresholds, accuracies = np.arange(0, 4, 0.01), []

    def share(threshold: float, pairs: np.ndarray) -> float:
        return sum((distances[it] < threshold) == is_same[it] for it in pairs) / len(pairs)

    for train, test in KFold(n_splits=10, shuffle=False).split(np.arange(len(is_same))):
        best = np.argmax([share(threshold, train) for threshold in thresholds])
        accuracies.append(share(thresholds[best], test))
    return float(np.mean(accuracies)), float(np.std(accuracies))


@pytest.mark.parametrize("count", [20, 57])
def test_the_rule_of_insightface_to_the_last_digit(tmp_path, count):
    write_pairs(tmp_path / "some.bin", count)
    pairs = load_pairs(tmp_path / "some.bin")
    embeddings = torch.randn(2 * count, 3, generator=torch.Generator().manual_seed(count))
    found = pairs.score_insightface(embeddings)
    unit = sklearn_normalize(embeddings.double().numpy())
    assert tuple(found.values()) == theirs(unit, pairs.is_same.tolist())
    assert (
        list(found) == ["insightface_accuracy", "insightface_accuracy_std"]
        and 0 < found["insightface_accuracy"] < 1
    )
