"""RecordIO: what is written is the format to the byte, what is read is what was written, what is damaged is named."""

import multiprocessing
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partialfc.data import recordio
from partialfc.data.recordio import CorruptRecordError, Header, RecordFile, RecordWriter, frame, read_record

MAGIC = struct.pack("<I", 0xCED7230A)
# Payloads in which the magic stands, aligned and not, at the ends and twice in a row.
pieces = st.lists(st.one_of(st.just(MAGIC), st.binary(max_size=9)), max_size=8).map(b"".join)


def framed_as_dmlc_does(payload: bytes) -> bytes:
    """dmlc-core's writer, word by word."""
    out, begin, cut = b"", 0, False
    for at in range(0, len(payload) // 4 * 4, 4):
        if payload[at : at + 4] == MAGIC:
            out += MAGIC + struct.pack("<I", (2 if cut else 1) << 29 | at - begin) + payload[begin:at]
            begin, cut = at + 4, True
    out += MAGIC + struct.pack("<I", (3 if cut else 0) << 29 | len(payload) - begin) + payload[begin:]
    return out + b"\0" * (-len(payload) % 4)


@given(pieces)
def test_framing_is_dmlcs_and_reads_back(payload):
    framed = frame(payload)
    assert framed == framed_as_dmlc_does(payload)
    record, end = read_record(memoryview(b"\0\0\0\0" + framed), 4)
    assert bytes(record) == payload and end == 4 + len(framed)


def test_a_record_byte_for_byte():
    """As mxnet.recordio.pack and MXRecordIO write it: a scalar label, then two labels."""
    header = struct.pack("<IfQQ", 0, 7.0, 3, 0)
    assert frame(recordio.pack(Header(7.0, 3), b"face")) == MAGIC + struct.pack("<I", 28) + header + b"face"
    header = struct.pack("<IfQQ", 2, 0.0, 0, 0) + struct.pack("<ff", 5.0, 9.0)
    assert frame(recordio.pack(Header(np.array([5, 9]), 0), b"")) == MAGIC + struct.pack("<I", 32) + header


@given(st.integers(0, 2**24), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=20))
def test_headers_read_back(label, id_, id2, payload):
    header, rest = recordio.unpack(recordio.pack(Header(float(label), id_, id2), payload))
    assert header == Header(float(label), id_, id2) and bytes(rest) == payload
    header, rest = recordio.unpack(recordio.pack(Header(np.array([label, 1.0]), id_, id2), payload))
    assert header.label.tolist() == [label, 1.0] and header.flag == 2 and bytes(rest) == payload


PAYLOADS = {0: b"", 5: b"abc", 2: b"x" * 8 + MAGIC + MAGIC + b"y", 900: MAGIC, 7: b"last"}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with RecordWriter(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        for key, payload in PAYLOADS.items():
            writer.write(key, Header(float(key), key), payload)
    return tmp_path / "train.rec"


def read_all(file: RecordFile) -> dict[int, bytes]:
    return {int(key): bytes(file[int(key)][1]) for key in file.keys}


@pytest.mark.parametrize("index", ["beside", "shuffled", "none"])
def test_records_by_key(written, index):
    path_idx = written.with_suffix(".idx")
    if index == "shuffled":
        path_idx.write_text("".join(reversed(path_idx.read_text().splitlines(keepends=True))))
    if index == "none":
        path_idx.unlink()
    file = RecordFile(written)
    assert read_all(file) == PAYLOADS and len(file) == 5
    assert 900 in file and 3 not in file and 901 not in file
    with pytest.raises(KeyError, match="no record with key 3"):
        file[3]


def test_a_named_index_is_taken_instead_of_the_one_beside(written, tmp_path):
    other = tmp_path / "other.idx"
    other.write_text("".join(f"{int(line.split()[0]) + 1}\t{line.split()[1]}\n"
                             for line in written.with_suffix(".idx").read_text().splitlines()))  # fmt: skip
    assert set(read_all(RecordFile(written, other))) == {key + 1 for key in PAYLOADS}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_file_goes_to_other_processes(written, method):
    file = RecordFile(written)
    read_all(file)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply_async(read_all, (file,)).get(timeout=60) == PAYLOADS


def test_the_map_does_not_travel(written):
    file = RecordFile(written)
    assert len(pickle.dumps(file)) < 1000


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("missing", [1, 4, 30, 36])
def test_a_truncated_file_is_refused_on_opening(written, with_index, missing):
    if not with_index:
        written.with_suffix(".idx").unlink()
    cut(written, written.stat().st_size - missing)
    if not with_index and missing == 36:  # nothing but whole records: all that can be seen without an index
        assert len(RecordFile(written)) == 4
        return
    with pytest.raises(CorruptRecordError, match=r"train.rec: record at byte \d+: .*the file"):
        RecordFile(written)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("a\tb\n", "expected lines of a key"),
        ("1\t2\t3\n", "expected lines of a key"),
        ("1\t0\n2\n", "expected lines of a key"),
        ("0\t0\n", r"its last record ends at byte 32 of \d+; a stale .idx"),
        ("0\t4\n", r"record at byte 4: magic 0x18"),
        ("0\t99999\n", r"record at byte 99999: the file ends at"),
        ("0\t-8\n", r"record at byte -8"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(written, content, message):
    written.with_suffix(".idx").write_text(content)
    with pytest.raises(CorruptRecordError, match=message):
        RecordFile(written)


def test_a_key_given_twice_is_refused(written):
    index = written.with_suffix(".idx")
    index.write_text(index.read_text() + "5\t0\n")
    with pytest.raises(CorruptRecordError, match="key 5 occurs in several records"):
        RecordFile(written)


def part(number: int, payload: bytes) -> bytes:
    return MAGIC + struct.pack("<I", number << 29 | len(payload)) + payload


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (part(2, b"1234"), "part 2, not a record's first"),
        (part(1, b"1234") + part(0, b"1234"), "part 0 where its next part was expected"),
        (part(1, b"1234"), "inside its header"),
        (b"\0" * 12, "magic 0x0"),
    ],
)
def test_parts_in_a_wrong_order_are_refused(data, message):
    with pytest.raises(CorruptRecordError, match=message):
        read_record(memoryview(data), 0)


@pytest.mark.parametrize(
    ("record", "message"),
    [(b"short", "5 bytes, expected a header"), (struct.pack("<IfQQ", 3, 0, 0, 0), "3 labels")],
)
def test_a_record_too_short_for_its_header_is_refused(record, message):
    with pytest.raises(CorruptRecordError, match=message):
        recordio.unpack(record)


def test_a_missing_and_an_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        RecordFile(tmp_path / "none.rec")
    (tmp_path / "empty.rec").touch()
    with pytest.raises(CorruptRecordError, match="is empty"):
        RecordFile(tmp_path / "empty.rec")


def test_announced_records_are_read_as_before(tmp_path):
    with RecordWriter(tmp_path / "a.rec", tmp_path / "a.idx") as writer:
        for key in range(50):
            writer.write(key, Header(float(key), key), bytes([key]) * 100 * (key + 1))
    file = RecordFile(tmp_path / "a.rec")
    for keys in ([], [49], [3, 4, 5], [49, 0, 17, 18], list(range(50))):
        file.prefetch_hint(np.array(keys, np.int64))
    assert [bytes(file[key][1]) for key in range(50)] == [bytes([key]) * 100 * (key + 1) for key in range(50)]


@pytest.mark.parametrize("offset", [-4, -5000])
def test_an_index_that_points_outside_does_not_stop_an_announcement(written, offset):
    path = written.with_suffix(".idx")
    path.write_text(path.read_text() + f"99\t{offset}\n")
    RecordFile(written).prefetch_hint(np.array([99]))


def test_a_file_that_is_cut_while_it_is_read_is_named(tmp_path):
    """Not by SIGBUS, by which the system ends a process that looks at what is mapped and no longer there."""
    path = tmp_path / "train.rec"
    with RecordWriter(path, tmp_path / "train.idx") as writer:
        for key in range(50):
            writer.write(key, Header(float(key), key), bytes(1000))
    records = RecordFile(path)
    assert len(records[49][1]) == 1000
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(
        CorruptRecordError, match=rf"train.rec: 4096 bytes, {size} when it was opened; truncated while"
    ):
        records[49]
