"""Packs made of packs hold each image once, byte for byte, under the right class."""

import pytest
from helpers.faces import face, write_pack

from partialfc.data import RecordDataset
from partialfc.data.packs import pack_writer
from partialfc.data.packs.merge_split import merge, split
from partialfc.errors import InputError


def content(folder):
    dataset = RecordDataset(folder)
    return [(dataset.label(sample), dataset.encoded_image(sample)) for sample in range(len(dataset))]


@pytest.fixture
def pack(tmp_path):
    """Classes 0, 1, 3 and 5 of 6 have images, not in order."""
    samples = [(label, face(label, image)) for image in range(2) for label in (3, 0, 5, 1)]
    pack_writer.write_pack(tmp_path / "pack", samples, size=32, num_classes=6)
    return tmp_path / "pack"


def test_merged_classes_follow_each_other(pack, tmp_path):
    write_pack(tmp_path / "other", 2, 3)
    assert merge([pack, tmp_path / "other", pack], tmp_path / "out") == (10, 22)  # classes with images
    other = [(6 + label, encoded) for label, encoded in content(tmp_path / "other")]
    again = [(8 + label, encoded) for label, encoded in content(pack)]
    assert content(tmp_path / "out") == content(pack) + other + again
    assert RecordDataset(tmp_path / "out").num_classes == 14


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_split_holds_out_whole_identities(pack, tmp_path, seed):
    (rest_classes, rest_count), (held_classes, held_count) = split(
        pack, tmp_path / "rest", tmp_path / "held", num_identities=1, seed=seed
    )
    assert (rest_classes, rest_count, held_classes, held_count) == (3, 6, 1, 2)
    (drawn,) = {label for label, encoded in content(pack) if (0, encoded) in content(tmp_path / "held")}
    kept = sorted({0, 1, 3, 5} - {drawn})
    expected = [(kept.index(label), encoded) for label, encoded in content(pack) if label != drawn]
    assert content(tmp_path / "rest") == expected
    assert content(tmp_path / "held") == [(0, encoded) for label, encoded in content(pack) if label == drawn]


def test_seeds_draw_other_identities(tmp_path):
    write_pack(tmp_path / "pack", 20, 1)
    drawn = set()
    for seed in range(4):
        split(tmp_path / "pack", tmp_path / "rest", tmp_path / "held", num_identities=3, seed=seed)
        drawn.add(tuple(encoded for _, encoded in content(tmp_path / "held")))
    assert len(drawn) == 4


@pytest.mark.parametrize("identities", [0, -1, 4, 9])
def test_more_or_fewer_than_there_are(pack, tmp_path, identities):
    with pytest.raises(
        InputError, match=f"{identities} identities to hold out of .*; expected 1 to 3, as it has 4"
    ):
        split(pack, tmp_path / "rest", tmp_path / "held", num_identities=identities)


def test_folders_that_would_overwrite_each_other(pack, tmp_path):
    with pytest.raises(InputError, match="expected two different folders"):
        split(pack, tmp_path / "out", tmp_path / "out", num_identities=1)
    with pytest.raises(InputError, match="pack: expected a folder other than the input packs"):
        split(pack, pack, tmp_path / "held", num_identities=1)
    with pytest.raises(InputError, match="expected a folder other"):
        merge([pack], pack)


def test_images_of_another_size_are_refused(pack, tmp_path):
    write_pack(tmp_path / "large", 2, 2, size=48)
    with pytest.raises(InputError, match=r"large/train.rec: images of 48 x 48, expected 32 x 32"):
        merge([pack, tmp_path / "large"], tmp_path / "out")


def test_gone_on_with_after_an_interruption(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_writer, "_FLUSH_EVERY", 2)
    encoded = RecordDataset.encoded_image

    def failing(dataset, sample):
        if sample == 5:
            raise KeyboardInterrupt
        return encoded(dataset, sample)

    with monkeypatch.context() as patch:
        patch.setattr(RecordDataset, "encoded_image", failing)
        with pytest.raises(KeyboardInterrupt):
            merge([pack], tmp_path / "out")
    assert (tmp_path / "out/.packing/journal").stat().st_size == 4 * 16
    merge([pack], tmp_path / "out")
    assert content(tmp_path / "out") == content(pack)
