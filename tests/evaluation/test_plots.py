"""The pictures of a verification show what is hard."""

from pathlib import Path

import numpy as np
import pytest
from faces import write_pairs

from partialfc.evaluation import plots
from partialfc.evaluation.pairs import Pairs, load_pairs


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    write_pairs(tmp_path / "lfw.bin", 40)
    return load_pairs(tmp_path / "lfw.bin")


def test_the_hardest_pairs_are_the_least_alike_of_one_person_and_the_most_alike_of_two(pairs, monkeypatch):
    similarity = np.random.default_rng(0).permutation(np.linspace(-1, 1, len(pairs.same)))
    drawn, cell_of = [], plots._cell

    def cell(of, place, shown):
        drawn.append((place, shown))
        return cell_of(of, place, shown)

    monkeypatch.setattr(plots, "_cell", cell)
    plots.hardest(pairs.pixels, similarity, pairs.same)
    same, other = np.flatnonzero(pairs.same), np.flatnonzero(~pairs.same)
    expected = [*same[np.argsort(similarity[same])][:12], *other[np.argsort(-similarity[other])][:12]]
    assert [place for place, _ in drawn] == expected
    assert [shown for _, shown in drawn] == similarity[expected].tolist()


def test_their_faces_are_seen(pairs):
    picture = plots.hardest(pairs.pixels, np.linspace(-1, 1, len(pairs.same)), pairs.same)
    assert picture.shape == (592, 1200, 3) and picture.dtype == np.uint8
    assert (picture < 250).any(axis=2).mean() > 0.4  # of the area; without faces it is white


def test_fewer_pairs_than_places(tmp_path):
    write_pairs(tmp_path / "few.bin", 10)
    few = load_pairs(tmp_path / "few.bin")
    assert plots.hardest(few.pixels, np.zeros(len(few.same)), few.same).shape == (592, 1200, 3)


def test_roc_even_of_one_kind_of_pairs(pairs):
    similarity = np.where(pairs.same, 0.9, 0.1)
    for same in (pairs.same, np.ones_like(pairs.same)):
        picture = plots.roc("lfw", similarity, same)
        assert picture.shape == (480, 640, 3) and len(np.unique(picture)) > 10
