"""Built-in identities: the same wherever they are drawn, and harder as asked."""

import msgspec
import numpy as np
import pytest
from helpers.faces import write_pack

from partialfc.config import SyntheticData
from partialfc.data import RecordDataset, synthetic
from partialfc.data.synthetic.render import render_image
from partialfc.errors import InputError
from partialfc.evaluation.pairs import load_pairs


def test_a_picture_is_a_pure_function_of_its_arguments():
    first = render_image(1, 2, 3, size=64, difficulty=1.0)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, render_image(1, 2, 3, size=64, difficulty=1.0))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert np.abs(first.astype(int) - render_image(*other, size=64, difficulty=1.0)).mean() > 5


def apart(difficulty: float) -> tuple[float, float]:
    """Mean differences of the faces' middles: two images of one identity, and of two."""
    pictures = np.array(
        [[render_image(0, identity, image, size=48, difficulty=difficulty)[12:36, 12:36] for image in (0, 1)]
         for identity in range(12)], float
    )  # fmt: skip
    return np.abs(pictures[:, 0] - pictures[:, 1]).mean(), np.abs(pictures[1:, 0] - pictures[:-1, 1]).mean()


def test_difficulty_makes_the_images_of_an_identity_differ():
    (same, other), (same_harder, other_harder) = apart(0.0), apart(1.0)
    assert same < 1 and other > 20  # without difficulty only the background differs
    assert same_harder > 20 and same_harder / other_harder > 0.6


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    expected = SyntheticData(identities=3, images=2, unseen=20, pairs=40, size=32, seed=5)
    synthetic.ensure_pack(folder, expected)
    return folder, expected


def test_the_pack_and_the_pairs_read_back(drawn):
    folder, _ = drawn
    dataset = RecordDataset(folder)
    assert len(dataset) == 6 and dataset.num_classes == 3 and dataset[5][1] == 2
    expected = render_image(5, 1, 0, size=32, difficulty=1.0)
    assert np.abs(dataset[2][0].astype(int) - expected).mean() < 12  # but for JPEG
    pairs = load_pairs(folder / "unseen.bin")
    assert pairs.is_same.sum() == 20 and len(pairs.is_same) == 40 and len(set(pairs.images)) == 80


def test_what_is_there_is_not_drawn_again(drawn):
    folder, expected = drawn
    before = (folder / "train.rec").stat().st_mtime_ns
    synthetic.ensure_pack(folder, expected)
    assert (folder / "train.rec").stat().st_mtime_ns == before


def test_other_identities_than_those_that_are_there_are_refused(drawn):
    folder, expected = drawn
    other = msgspec.structs.replace(expected, identities=4)
    with pytest.raises(
        InputError, match=r'synthetic.json: generated with .*"identities":3.* the recipe has .*"identities":4'
    ):
        synthetic.ensure_pack(folder, other)


def test_a_pack_of_ones_own_stays(tmp_path):
    write_pack(tmp_path, 2, 2)
    synthetic.ensure_pack(tmp_path, SyntheticData())
    assert len(RecordDataset(tmp_path)) == 4 and not (tmp_path / "unseen.bin").exists()


@pytest.mark.parametrize(("unseen", "pairs"), [(20, 20), (20, 400), (37, 1000)])
def test_no_identity_is_in_two_folds_or_trained_on(unseen, pairs):
    expected = SyntheticData(identities=7, unseen=unseen, pairs=pairs)
    listed = synthetic._make_pairs(expected)
    folds = [listed[fold * pairs // 10 : (fold + 1) * pairs // 10] for fold in range(10)]
    seen = [{identity for pair in fold for identity, _ in pair} for fold in folds]
    assert min(map(min, seen)) >= 7 and max(map(max, seen)) < 7 + unseen
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert len({picture for pair in listed for picture in pair}) == 2 * len(listed)
    for fold in folds:
        assert sum(first[0] == second[0] for first, second in fold) == len(fold) // 2
