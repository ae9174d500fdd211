"""RecordDataset over the dialects of packs that are in use, and over packs that contradict themselves."""

from pathlib import Path

import numpy as np
import pytest
from helpers.faces import face, write_pack

from partialfc.data import RecordDataset, dataset, images, recordio
from partialfc.data.recordio import Header, RecordWriter
from partialfc.errors import InputError

CLASSES, EACH = 3, 2
LABELS = [label for label in range(CLASSES) for _ in range(EACH)]


def write_records(folder: Path, records: list[tuple[int, Header, bytes]], name: str = "train") -> None:
    with RecordWriter(folder / f"{name}.rec", folder / f"{name}.idx") as writer:
        for record in records:
            writer.write(*record)


def records(first_key: int, label=float) -> list[tuple[int, Header, bytes]]:
    return [
        (key, Header(label(LABELS[place]), key), face(LABELS[place], place))
        for place, key in enumerate(range(first_key, first_key + len(LABELS)))
    ]


def identity_records() -> list[tuple[int, Header, bytes]]:
    return [
        (7 + label, Header(np.array([1 + 2 * label, 3 + 2 * label]), 7 + label), b"")
        for label in range(CLASSES)
    ]


HEADER = [(0, Header(np.array([7, 10]), 0), b"")]


def with_property(folder: Path, text: str = "3,32,32") -> None:
    (folder / "property").write_text(text)


def assert_holds_the_faces(folder: Path) -> None:
    found = RecordDataset(folder)
    assert len(found) == 6 and found.num_classes == 3
    for place, label in enumerate(LABELS):
        pixels, found_label = found[place]
        assert found_label == label and isinstance(found_label, int)
        np.testing.assert_array_equal(pixels, images.decode(face(label, place)))


def test_face2rec2_header_after_the_images_labels_of_two(tmp_path):
    write_records(tmp_path, records(1, lambda label: np.array([label, 1])) + identity_records() + HEADER)
    with_property(tmp_path)
    assert_holds_the_faces(tmp_path)


def test_rec_builder_header_first_scalar_labels_no_property(tmp_path):
    write_records(tmp_path, HEADER + records(1) + identity_records())
    assert_holds_the_faces(tmp_path)


@pytest.mark.parametrize("first_key", [0, 1])
def test_im2rec_and_reshuffled_packs_without_a_header(tmp_path, first_key):
    write_records(tmp_path, records(first_key))
    assert_holds_the_faces(tmp_path)


def test_without_an_index(tmp_path):
    write_records(tmp_path, records(1) + identity_records() + HEADER)
    (tmp_path / "train.idx").unlink()
    assert_holds_the_faces(tmp_path)


@pytest.mark.parametrize("name", ["file", "webface"])
def test_packs_of_another_name(tmp_path, name):
    write_records(tmp_path, records(0), name)
    assert_holds_the_faces(tmp_path)


def test_labels_in_id2(tmp_path):
    write_records(
        tmp_path, [(key, Header(0.0, key, LABELS[key]), face(LABELS[key], key)) for key in range(6)]
    )
    with_property(tmp_path, "3,32,32,shuffled,id2")
    assert_holds_the_faces(tmp_path)


def test_a_header_rounded_by_float32_gives_way_to_the_index(tmp_path, monkeypatch):
    """As in packs of more than 2^24 images: here everything from 8 on counts as rounded, and the header lies."""
    monkeypatch.setattr(dataset, "MAX_EXACT_FLOAT32", 8)
    lies = [(0, Header(np.array([8, 12]), 0), b"")]
    write_records(tmp_path, records(1) + identity_records() + lies)
    with pytest.raises(InputError, match="its header is rounded"):
        RecordDataset(tmp_path)
    with_property(tmp_path)
    assert_holds_the_faces(tmp_path)


def test_a_rounded_header_without_identities(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "MAX_EXACT_FLOAT32", 8)
    write_records(tmp_path, [*records(1), (0, Header(np.array([8, 12]), 0), b"")])
    with_property(tmp_path)
    assert_holds_the_faces(tmp_path)


@pytest.mark.parametrize("grouped", [True, False])
def test_packs_of_more_than_two_to_the_24_images(tmp_path, monkeypatch, grouped):
    """Their index, each image of which is the same record: N + 1 is odd and above 2^24, so that the header is rounded."""
    count, classes = (1 << 24) + 4, 3
    header = Header(np.array([count + 1, count + 1 + classes]), 0)
    assert int(np.float32(count + 1)) != count + 1
    some = [(1, Header(2.0, 1), face(2, 0)), (2, Header(np.array([1, 2]), 2), b""), (0, header, b"")]
    write_records(tmp_path, some)
    with_property(tmp_path)
    _, starts = recordio._read_index(tmp_path / "train.idx")
    image, identity, end = starts.tolist()
    offsets = [np.array([end]), np.full(count, image), np.full(classes * grouped, identity)]
    index = np.arange(1 + count + classes * grouped), np.concatenate(offsets)
    monkeypatch.setattr(recordio, "_read_index", lambda path: index)
    found = RecordDataset(tmp_path)
    assert (len(found), found.num_classes) == (count, classes)
    assert found.key(0) == 1 and found.key(count - 1) == count and found[count - 1][1] == 2


def test_images_are_resized(tmp_path):
    write_pack(tmp_path, 2, 2, size=32)
    assert RecordDataset(tmp_path, image_size=20)[0][0].shape == (20, 20, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4,32,32", "property: 4 classes, the header of train.rec says 3"),
        ("3,112,112", "property: images of 112 x 112, the first in train.rec has 32 x 32"),
        ("3,32", "property: '3,32', expected classes,height,width"),
        ("0,32,32", "expected numbers above 0"),
        ("many", "property: 'many', expected classes,height,width"),
    ],
)
def test_a_property_that_disagrees_is_refused(tmp_path, text, message):
    write_pack(tmp_path, CLASSES, EACH)
    with_property(tmp_path, text)
    with pytest.raises(InputError, match=message):
        RecordDataset(tmp_path)


def test_a_label_out_of_range_is_refused_when_it_is_read(tmp_path):
    write_records(tmp_path, records(0))
    with_property(tmp_path, "2,32,32")
    found = RecordDataset(tmp_path)
    with pytest.raises(
        InputError, match=r"train.rec, key 4: label 2; expected 0 to 1, as there are 2 classes"
    ):
        found[4]


def test_a_label_that_is_no_integer_is_refused(tmp_path):
    write_records(tmp_path, records(0, lambda label: label + 0.5))
    with pytest.raises(InputError, match=r"key 0: label 0.5, expected an integer"):
        RecordDataset(tmp_path)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    write_records(tmp_path, [*records(0), (6, Header(0.0, 6), b"no image"), (7, Header(0.0, 7), b"")])
    found = RecordDataset(tmp_path)
    for place, length in ((6, 8), (7, 0)):
        with pytest.raises(InputError, match=f"train.rec, key {place}: {length} bytes; expected an image"):
            found[place]


def test_an_index_without_the_images_that_the_header_names_is_refused(tmp_path):
    write_records(tmp_path, records(1)[:5] + identity_records() + HEADER)
    with pytest.raises(InputError, match="its header lists images 1 to 6, its index has 8 more keys, 1 to 9"):
        RecordDataset(tmp_path)


def test_more_classes_than_float32_holds_are_refused_without_id2(tmp_path):
    write_records(tmp_path, records(0))
    with_property(tmp_path, "16777217,32,32")
    with pytest.raises(InputError, match="16777217 classes with float32 labels"):
        RecordDataset(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(OSError, match=r"none: no such folder; expected train.rec"):
        RecordDataset(tmp_path / "none")
    with pytest.raises(OSError, match=r"no .rec file; expected train.rec"):
        RecordDataset(tmp_path)
    for name in ("a.rec", "b.rec"):
        (tmp_path / name).touch()
    with pytest.raises(OSError, match=r"a.rec, b.rec; expected train.rec"):
        RecordDataset(tmp_path)
