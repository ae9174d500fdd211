"""Listings of pairs become .bin sets that read back."""

from pathlib import Path

import pytest
from helpers.faces import face

from partialfc.data.packs.pairs import pack_pairs
from partialfc.errors import InputError
from partialfc.evaluation.pairs import load_pairs


@pytest.fixture
def people(tmp_path: Path) -> Path:
    for name in ("Ann", "Bo"):
        (tmp_path / name).mkdir()
        for number in (1, 2):
            (tmp_path / name / f"{name}_{number:04d}.jpg").write_bytes(face(ord(name[0]), number))
    return tmp_path


def test_a_listing_of_pairs_reads_back(people):
    listing = people / "pairs.txt"
    listing.write_text("5\t2\n" + "Ann\t1\t2\nBo\t1\t2\nAnn\t1\tBo\t2\nBo\t1\tAnn\t1\n" * 5)
    assert pack_pairs(listing, people, people / "some.bin") == 20
    pairs = load_pairs(people / "some.bin")
    assert pairs.name == "some" and pairs.is_same.tolist() == [True, True, False, False] * 5
    assert pairs.images[4:6] == [face(ord("A"), 1), face(ord("B"), 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the numbers"),
        ("Ann 1 2\n", "line 1: expected the numbers"),
        ("1\nAnn 1 2\n", "1 pairs, expected 2"),
        ("1\nAnn 1 2\nAnn 1 2 3 4\n", "line 3: 'Ann 1 2 3 4', expected NAME i j"),
        ("1\nAnn 1 2\nAnn one Bo 2\n", "line 3: 'Ann one Bo 2', expected"),
        ("1\nAnn 1 2\nAnn 1 Bo 3\n", "Bo_0003.jpg"),
        ("1\nAnn 1 \u00b2\nAnn 1 Bo 2\n", "line 2: 'Ann 1 .*', expected NAME i j"),
        ("\u00b2\nAnn 1 2\n", "line 1: expected the numbers"),
        ("1" * 5000 + "\n", "line 1: expected the numbers"),
        ("1\nAnn\0 1 2\nAnn 1 Bo 2\n", "line 2: contains a zero byte; expected NAME i j"),
        ("1\nAnn\udcff 1 2\nAnn 1 Bo 2\n", "Ann.*_0001.jpg"),
    ],
)
def test_a_bad_listing_is_refused(people, text, message):
    (people / "pairs.txt").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises((InputError, OSError), match=message):
        pack_pairs(people / "pairs.txt", people, people / "some.bin")
    assert not (people / "some.bin").exists()


def test_an_unreadable_image_of_a_pair_is_named(people):
    (people / "pairs.txt").write_text("1\nAnn 1 2\nAnn 1 Bo 2\n")
    (people / "Bo/Bo_0002.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"Bo_0002.jpg: 0 bytes; expected an image"):
        pack_pairs(people / "pairs.txt", people, people / "some.bin")
