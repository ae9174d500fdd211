"""Damaged packs: what is wrong is named, and everything else is saved."""

import numpy as np
import pytest
from helpers.faces import face, write_pack

from partialfc.data import RecordDataset
from partialfc.data.packs.pack_check import check_pack, repair_pack
from partialfc.data.packs.pack_writer import write_pack as write_samples
from partialfc.data.recordio import MAGIC, Header, RecordWriter
from partialfc.errors import InputError

IMAGES = [(label, face(label, image)) for label in range(3) for image in range(4)]


def content(folder):
    dataset = RecordDataset(folder)
    return [(dataset.label(sample), dataset.encoded_image(sample)) for sample in range(len(dataset))]


@pytest.fixture
def pack(tmp_path):
    write_pack(tmp_path / "pack", 3, 4)
    return tmp_path / "pack"


def offsets(pack):
    lines = (pack / "train.idx").read_text().splitlines()
    return dict(tuple(map(int, line.split("\t"))) for line in lines)


def overwrite(pack, at, some):
    path = pack / "train.rec"
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + some + whole[at + len(some) :])


def test_a_whole_pack(pack, tmp_path):
    findings = check_pack(pack)
    assert findings.num_images == 12 and not findings.problems
    assert findings.dialect.startswith("rec_builder: a key-0 header")
    assert repair_pack(pack, tmp_path / "out") == findings
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "out" / name).read_bytes() == (pack / name).read_bytes()


@pytest.mark.parametrize(
    ("inside", "some", "message"),
    [
        (0, b"xxxx", "magic 0x78787878"),  # no frame
        (4, b"\xff\xff\xff\x1f", "ends at"),  # longer than the file
        (8 + 24, b"\0" * 40, "expected an image"),
        (8 + 4, np.array([1.5], "<f4").tobytes(), "label 1.5, expected an integer"),
        (8 + 4, np.array([3.0], "<f4").tobytes(), "label 3, which is not a class of the pack"),
        (8, b"\xff\xff\xff\x0f", "expected 268435455 labels"),
    ],
)
def test_a_damaged_record_is_named_and_left_out(pack, tmp_path, inside, some, message):
    at = offsets(pack)[6]
    before = (pack / "train.idx").read_bytes()
    overwrite(pack, at + inside, some)
    damaged = (pack / "train.rec").read_bytes()
    findings = check_pack(pack)
    assert findings.num_images == 11 and len(findings.problems) == 1
    assert f"record at byte {at}: " in findings.problems[0] and message in findings.problems[0]
    assert repair_pack(pack, tmp_path / "out") == findings
    assert content(tmp_path / "out") == IMAGES[:5] + IMAGES[6:] and not check_pack(tmp_path / "out").problems
    assert (pack / "train.rec").read_bytes() == damaged and (pack / "train.idx").read_bytes() == before


def test_a_record_that_says_it_goes_on_over_the_next_ones(pack, tmp_path):
    begin, end = offsets(pack)[6], offsets(pack)[9]
    overwrite(pack, begin + 4, (end - begin - 8).to_bytes(4, "little"))
    findings = repair_pack(pack, tmp_path / "out")
    assert len(findings.problems) == 1 and "contains the start of another" in findings.problems[0]
    assert content(tmp_path / "out") == IMAGES[:5] + IMAGES[6:]


def test_a_record_of_several_parts_is_whole(tmp_path):
    payload = IMAGES[0][1] + bytes(-len(IMAGES[0][1]) % 4) + MAGIC.to_bytes(4, "little") + b"123"
    write_samples(tmp_path, [(0, payload), IMAGES[4]], size=32)
    findings = check_pack(tmp_path)
    assert findings.num_images == 2 and not findings.problems


def test_a_pack_that_is_cut_off(pack, tmp_path):
    path = pack / "train.rec"
    path.write_bytes(path.read_bytes()[: offsets(pack)[10] + 50])
    (pack / "property").unlink()
    findings = check_pack(pack)
    assert findings.dialect is None and findings.num_images == 9 and len(findings.problems) == 2
    assert repair_pack(pack, tmp_path / "out") == findings
    assert content(tmp_path / "out") == IMAGES[:9]


@pytest.mark.parametrize("index", [None, b"no index", b"1\t4\n"])
def test_a_lost_or_wrong_index(pack, tmp_path, index):
    (pack / "train.idx").unlink()
    if index is not None:
        (pack / "train.idx").write_bytes(index)
        assert "train.idx" in check_pack(pack).problems[0] or "stale" in check_pack(pack).problems[0]
    repair_pack(pack, tmp_path / "out")
    assert content(tmp_path / "out") == IMAGES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({5: 3}, "1 of 16 keys point where no record starts, such as key 5 to byte 3"),
        ({5: "as 6"}, "1 records have several keys, such as 5 and 6"),
        ({15: None}, "1 of 16 records have no key, so that training skips them"),
    ],
)
def test_a_key_that_points_elsewhere(pack, change, message):
    entries = offsets(pack)
    for key, value in change.items():
        entries[key] = entries[6] if value == "as 6" else value
    lines = [f"{key}\t{offset}\n" for key, offset in entries.items() if offset is not None]
    (pack / "train.idx").write_text("".join(lines))
    findings = check_pack(pack)
    assert findings.num_images == 12 and any(message in it for it in findings.problems), findings.problems
    assert all(it.startswith(f"{pack}/train.idx: ") for it in findings.problems)


def test_damaged_names_are_a_problem(pack):
    (pack / "identities.tsv").write_bytes(b"\xff\xfe")
    (problem,) = check_pack(pack).problems
    assert "identities.tsv" in problem


def test_the_dialects(tmp_path):
    with RecordWriter(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        for key, (label, encoded) in enumerate(IMAGES):
            writer.write(key, Header(np.array([label, 1.0]), key), encoded)
    assert check_pack(tmp_path).dialect.startswith("im2rec: no key-0 header, 2 labels per image, no property")
    repair_pack(tmp_path, tmp_path / "out")
    assert content(tmp_path / "out") == IMAGES


def test_nothing_that_can_be_read(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/train.rec").write_bytes(b"\0" * 1001)
    with pytest.raises(InputError, match=r"no readable image; .*/train.rec: record at byte 0: magic 0x0"):
        check_pack(tmp_path / "pack")
    with pytest.raises(InputError, match=r"train.rec: no readable image"):
        repair_pack(tmp_path / "pack", tmp_path / "out")
    with pytest.raises(InputError, match="expected a folder other than the pack"):
        repair_pack(tmp_path / "pack", tmp_path / "pack")
