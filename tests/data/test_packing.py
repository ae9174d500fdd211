"""Folders of images and listings of pairs become packs that read back, whatever the machine."""

from pathlib import Path

import numpy as np
import pytest
from faces import face

from partialfc.data import RecordDataset, images, packing
from partialfc.data.recordio import RecordFile
from partialfc.evaluation.pairs import load_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two identities of two JPEGs and one PNG that is too large, and files that are no images."""
    for name, numbers in {"b": (1, 0), "a": (10, 9)}.items():
        (tmp_path / "faces" / name).mkdir(parents=True)
        for number in numbers:
            (tmp_path / "faces" / name / f"{number:02d}.jpg").write_bytes(face(ord(name), number))
    (tmp_path / "faces/a/notes.txt").write_text("no image")
    (tmp_path / "faces/.hidden").mkdir()
    return tmp_path / "faces"


def test_a_folder_reads_back_in_sorted_order_with_its_jpeg_bytes(folder, tmp_path):
    assert packing.pack_folder(folder, tmp_path / "pack", size=32) == (2, 4)
    records = RecordFile(tmp_path / "pack/train.rec")
    expected = [
        (0, face(ord("a"), 9)),
        (0, face(ord("a"), 10)),
        (1, face(ord("b"), 0)),
        (1, face(ord("b"), 1)),
    ]
    assert [(int(records[key][0].label), bytes(records[key][1])) for key in range(1, 5)] == expected
    assert (tmp_path / "pack/property").read_text() == "2,32,32\n"
    assert {path.name for path in (tmp_path / "pack").iterdir()} == {"property", "train.idx", "train.rec"}


def test_the_layout_is_that_of_the_ms1m_packs(folder, tmp_path):
    packing.pack_folder(folder, tmp_path / "pack", size=32)
    records = RecordFile(tmp_path / "pack/train.rec")
    assert records.keys == range(7)
    header, payload = records[0]
    assert header.flag == 2 and header.label.tolist() == [5, 7] and len(payload) == 0
    assert [records[key][0].label.tolist() for key in (5, 6)] == [[1, 3], [3, 5]]
    assert [records[key][0].id for key in range(7)] == list(range(7))


def test_packing_twice_gives_the_same_bytes(folder, tmp_path):
    packing.pack_folder(folder, tmp_path / "one", size=48)
    packing.pack_folder(folder, tmp_path / "two", size=48)
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_images_of_another_size_are_resized(folder, tmp_path):
    packing.pack_folder(folder, tmp_path / "pack", size=48)
    dataset = RecordDataset(tmp_path / "pack")
    expected = images.decode(face(ord("b"), 1), 48)
    pixels, label = dataset[3]
    assert label == 1 and np.abs(pixels.astype(int) - expected).mean() < 3


def test_classes_beyond_float32_are_written_to_id2(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "EXACT_FLOATS", 1)
    packing.write_pack(tmp_path, [(0, face(0, 0)), (1, face(1, 0))], num_classes=2, size=32)
    assert (tmp_path / "property").read_text() == "2,32,32,id2\n"
    assert RecordFile(tmp_path / "train.rec")[2][0].id2 == 1
    assert [label for _, label in RecordDataset(tmp_path)] == [0, 1]


def test_bad_folders_are_refused_and_leave_no_pack(folder, tmp_path):
    with pytest.raises(ValueError, match="none: no such folder"):
        packing.pack_folder(tmp_path / "none", tmp_path / "pack")
    with pytest.raises(ValueError, match=r"faces/a: no folders in it"):
        packing.pack_folder(folder / "a", tmp_path / "pack")
    (folder / "c").mkdir()
    with pytest.raises(ValueError, match=r"faces/c: an identity without images; wanted .bmp, .jpeg"):
        packing.pack_folder(folder, tmp_path / "pack")
    (folder / "c/0.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"faces/c/0.jpg: 8 bytes that are no image"):
        packing.pack_folder(folder, tmp_path / "pack")
    assert not list((tmp_path / "pack").iterdir())


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
    assert packing.pack_pairs(listing, people, people / "some.bin") == 20
    pairs = load_pairs(people / "some.bin")
    assert pairs.name == "some" and pairs.same.tolist() == [True, True, False, False] * 5
    assert pairs.images[4:6] == [face(ord("A"), 1), face(ord("B"), 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: wanted the numbers"),
        ("Ann 1 2\n", "line 1: wanted the numbers"),
        ("1\nAnn 1 2\n", "1 pairs, wanted 2"),
        ("1\nAnn 1 2\nAnn 1 2 3 4\n", "line 3: 'Ann 1 2 3 4', wanted NAME i j"),
        ("1\nAnn 1 2\nAnn one Bo 2\n", "line 3: 'Ann one Bo 2', wanted"),
        ("1\nAnn 1 2\nAnn 1 Bo 3\n", "Bo_0003.jpg"),
    ],
)
def test_a_bad_listing_is_refused(people, text, message):
    (people / "pairs.txt").write_text(text)
    with pytest.raises((ValueError, OSError), match=message):
        packing.pack_pairs(people / "pairs.txt", people, people / "some.bin")
    assert not (people / "some.bin").exists()


def test_an_unreadable_image_of_a_pair_is_named(people):
    (people / "pairs.txt").write_text("1\nAnn 1 2\nAnn 1 Bo 2\n")
    (people / "Bo/Bo_0002.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"Bo_0002.jpg: 0 bytes that are no image"):
        packing.pack_pairs(people / "pairs.txt", people, people / "some.bin")
