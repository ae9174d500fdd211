"""The pictures of a verification show what is hard."""

from pathlib import Path

import numpy as np
import pytest
from helpers.faces import write_pairs

from partialfc.evaluation import plots
from partialfc.evaluation.pairs import VerificationPairs, load_pairs


@pytest.fixture
def pairs(tmp_path: Path) -> VerificationPairs:
    write_pairs(tmp_path / "lfw.bin", 40)
    return load_pairs(tmp_path / "lfw.bin")


def test_the_hardest_pairs_are_the_least_alike_of_one_person_and_the_most_alike_of_two(pairs, monkeypatch):
    similarity = np.random.default_rng(0).permutation(np.linspace(-1, 1, len(pairs.is_same)))
    drawn, cell_of = [], plots._pair_cell

    def cell(of, place, shown):
        drawn.append((place, shown))
        return cell_of(of, place, shown)

    monkeypatch.setattr(plots, "_pair_cell", cell)
    plots.plot_hardest_pairs(pairs.pixels, similarity, pairs.is_same)
    same, other = np.flatnonzero(pairs.is_same), np.flatnonzero(~pairs.is_same)
    expected = [*same[np.argsort(similarity[same])][:12], *other[np.argsort(-similarity[other])][:12]]
    assert [place for place, _ in drawn] == expected
    assert [shown for _, shown in drawn] == similarity[expected].tolist()


def test_their_faces_are_seen(pairs):
    picture = plots.plot_hardest_pairs(pairs.pixels, np.linspace(-1, 1, len(pairs.is_same)), pairs.is_same)
    assert picture.shape == (592, 1200, 3) and picture.dtype == np.uint8
    assert (picture < 250).any(axis=2).mean() > 0.4  # of the area; without faces it is white


def test_fewer_pairs_than_places(tmp_path):
    write_pairs(tmp_path / "few.bin", 10)
    few = load_pairs(tmp_path / "few.bin")
    assert plots.plot_hardest_pairs(few.pixels, np.zeros(len(few.is_same)), few.is_same).shape == (
        592,
        1200,
        3,
    )


def test_roc_even_of_one_kind_of_pairs(pairs):
    similarity = np.where(pairs.is_same, 0.9, 0.1)
    for same in (pairs.is_same, np.ones_like(pairs.is_same)):
        picture = plots.plot_roc("lfw", similarity, same)
        assert picture.shape == (480, 640, 3) and len(np.unique(picture)) > 10
