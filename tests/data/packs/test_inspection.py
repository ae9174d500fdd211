"""What tools say of a pack, and that what they unpack is what was packed."""

import cv2
import numpy as np
import pytest
from helpers.faces import face, write_pack

from partialfc.data import RecordDataset, images
from partialfc.data.packs import pack_writer
from partialfc.data.packs.pack_sources import PackOptions, pack_images
from partialfc.data.packs.pack_summary import summarize_pack, write_image_grid
from partialfc.data.packs.unpack import unpack_pack
from partialfc.data.recordio import Header, RecordWriter
from partialfc.errors import InputError


def write_records(folder, headers, *, with_property=True):
    folder.mkdir()
    with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        for key, (header, payload) in headers.items():
            writer.write(key, header, payload)
    if with_property:
        (folder / "property").write_text("3,32,32\n")


def images_of(labels, first):
    return {
        key: (Header(label, key), face(int(np.ravel(label)[0]), key))
        for key, label in enumerate(labels, first)
    }


PAIR = np.array([1.0, 0.0])
DIALECTS = {
    "face2rec2: a key-0 header, 2 labels per image, a property": (
        images_of([PAIR, PAIR], 1) | {0: (Header(np.array([3, 6]), 0), b"")},
        True,
    ),
    "reshuffled: no key-0 header, one label per image, a property": (images_of([0.0, 2.0], 1), True),
    "im2rec: no key-0 header, one label per image, no property": (images_of([0.0, 2.0], 0), False),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_dialect_is_named(tmp_path, dialect):
    records, with_property = DIALECTS[dialect]
    if 0 in records and len(records[0][1]) == 0:  # and the identities that the header speaks of
        records |= {3 + n: (Header(np.array([1, 3]), 3 + n), b"") for n in range(3)}
    write_records(tmp_path / "pack", records, with_property=with_property)
    assert summarize_pack(tmp_path / "pack").dialect == dialect


def test_counts_and_sizes(tmp_path):
    samples = [
        (label, face(label, image)) for label, count in ((0, 1), (1, 3), (3, 12)) for image in range(count)
    ]
    pack_writer.write_pack(tmp_path, samples, num_classes=4, size=32)
    summary = summarize_pack(tmp_path)
    assert summary.images_per_class.tolist() == [1, 3, 0, 12] and summary.sizes == {"32 x 32": 16}
    text = "\n".join(summary.format_lines())
    assert text.startswith("rec_builder: a key-0 header, one label per image, a property\n")
    assert "16 images of 3 identities" in text and "4 classes, 1 of them without images" in text
    assert "1 to 12, median 3" in text
    assert [line.split()[:4] for line in summary.format_lines()[4:]] == [
        ["1", "1", "identities", "#" * 13],
        ["2", "to", "4", "1"],
        ["10", "to", "19", "1"],
    ]


def test_what_is_unpacked_is_what_was_packed_and_packs_again(tmp_path):
    write_pack(tmp_path / "pack", 11, 3)
    assert unpack_pack(tmp_path / "pack", tmp_path / "out") == 33
    dataset = RecordDataset(tmp_path / "pack")
    for sample in range(33):
        path = tmp_path / f"out/{dataset.label(sample):02d}/{dataset.key(sample):02d}.jpg"
        assert path.read_bytes() == dataset.encoded_image(sample) == face(sample // 3, sample % 3)
    pack_images([tmp_path / "out"], tmp_path / "again", PackOptions(size=32))
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "pack" / name).read_bytes()


def test_unpacking_goes_on_where_it_was_interrupted(tmp_path):
    write_pack(tmp_path / "pack", 2, 2)
    unpack_pack(tmp_path / "pack", tmp_path / "out")
    kept, lost = tmp_path / "out/0/1.jpg", tmp_path / "out/1/4.jpg"
    content, made = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    unpack_pack(tmp_path / "pack", tmp_path / "out")
    assert lost.read_bytes() == content and kept.stat().st_mtime_ns == made


def test_the_sheet_shows_images_of_the_pack(tmp_path):
    write_pack(tmp_path / "pack", 2, 2)
    write_image_grid(tmp_path / "pack", tmp_path / "sheet.png", columns=3, rows=2, size=32)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))[:, :, ::-1]
    assert sheet.shape == (64, 96, 3) and (sheet[32:, 32:] == 255).all()
    pack = RecordDataset(tmp_path / "pack")
    assert (sheet[:32, :32] == pack[0][0]).all() and (sheet[32:, :32] == pack[3][0]).all()
    with pytest.raises(InputError, match=r"sheet.bogus: expected the name of a .png or .jpg file"):
        write_image_grid(tmp_path / "pack", tmp_path / "sheet.bogus")


def test_the_suffix_is_that_of_the_content():
    pixels = images.decode(face(0, 0))
    for suffix in (".jpg", ".png", ".bmp", ".webp"):
        assert images.file_suffix(cv2.imencode(suffix, pixels)[1].tobytes()) == suffix
    assert images.file_suffix(b"something else") == ".img"
