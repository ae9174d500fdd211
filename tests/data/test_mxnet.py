"""The real mxnet as oracle: what it writes we read, what we write it reads, byte for byte and label for label."""

import base64
import json
import os
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers.faces import face, write_pack

from partialfc.data import RecordDataset
from partialfc.data.recordio import Header, RecordFile, RecordWriter

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-mxnet/bin/python"
MAGIC = struct.pack("<I", 0xCED7230A)

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="no .venv-mxnet: ./test.sh --mxnet makes it, where Python is 3.11 or older"
)


class Record(NamedTuple):
    key: int
    label: float | list[float]
    id: int
    id2: int
    payload: bytes


def records() -> list[Record]:
    """Magics at every alignment, alone, at both ends and in a row; empty payloads; several labels; keys unsorted."""
    payloads = [b"", b"\0", b"abc", MAGIC, MAGIC * 3, b"x" + MAGIC, MAGIC + b"x", b"1234" + MAGIC + b"5678"]
    payloads += [b"." * before + MAGIC + b"." * after for before in range(9) for after in range(5)]
    payloads += [b"." * before + MAGIC + MAGIC + b"." * 3 for before in range(5)]
    payloads += [np.random.default_rng(0).bytes(length) for length in (1, 255, 4096, 100_003)]
    labels = [0.0, 16_777_215.0, [3.0, 1.0], [7.0], [float(n) for n in range(5)], 1.5]
    found = [
        Record(key, labels[key % len(labels)], key, 2**63 + key if key % 3 else 0, payload)
        for key, payload in enumerate(payloads, 1)
    ]
    return [*reversed(found), Record(0, [5.0, 9.0], 0, 0, b"")]


def mxnet(task: str, folder: Path) -> None:
    script = Path(__file__).with_name("mxnet_side.py")
    done = subprocess.run(
        [PYTHON, script, task, folder],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


def write_lines(folder: Path, some: list[Record]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps([*record[:4], base64.b64encode(record.payload).decode()]) for record in some]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")


def read_lines(folder: Path) -> list[Record]:
    lines = map(json.loads, (folder / "records.jsonl").read_text().splitlines())
    return [
        Record(key, label, id_, id2, base64.b64decode(payload)) for key, label, id_, id2, payload in lines
    ]


def write_ours(folder: Path, some: list[Record]) -> None:
    folder.mkdir(exist_ok=True)
    with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        for key, label, id_, id2, payload in some:
            whole = np.array(label) if isinstance(label, list) else label
            writer.write(key, Header(whole, id_, id2), payload)


def ours(file: RecordFile) -> list[Record]:
    read = []
    for key in map(int, file.keys):
        header, payload = file[key]
        label = header.label.tolist() if isinstance(header.label, np.ndarray) else header.label
        read.append(Record(key, label, header.id, header.id2, bytes(payload)))
    return read


def test_both_write_the_same_bytes_and_read_each_others(tmp_path):
    write_lines(tmp_path / "theirs", records())
    mxnet("write", tmp_path / "theirs")
    write_ours(tmp_path / "ours", records())
    for name in ("train.rec", "train.idx"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    assert ours(RecordFile(tmp_path / "theirs/train.rec")) == sorted(records())
    mxnet("read", tmp_path / "ours")
    assert sorted(read_lines(tmp_path / "ours"), key=lambda it: it.key) == sorted(
        records(), key=lambda it: it.key
    )


def test_without_an_index_the_keys_are_the_ids(tmp_path):
    write_lines(tmp_path, records())
    mxnet("write", tmp_path)
    (tmp_path / "train.idx").unlink()
    assert ours(RecordFile(tmp_path / "train.rec")) == sorted(records())


def test_mxnet_reads_the_packs_that_we_make(tmp_path):
    write_pack(tmp_path, 3, 2)
    mxnet("read", tmp_path)
    found = {record.key: record for record in read_lines(tmp_path)}
    assert found[0] == Record(0, [7.0, 10.0], 0, 0, b"")
    assert found[8] == Record(8, [3.0, 5.0], 8, 0, b"")
    for key in range(1, 7):
        label, image = divmod(key - 1, 2)
        assert found[key] == Record(key, float(label), key, label, face(label, image))


def losses(folder: Path, reader: str) -> list[float]:
    """Of a run in mxnet's environment, with a data worker."""
    settings = [
        f"data={{path: {folder}, num_workers: 1, reader: {reader}}}",
        "device=cpu",
        f"output={folder / reader}",
    ]
    backbone = "backbone={width: 4, depths: [1, 1], input_size: 32, embedding_size: 16}"
    recipe = folder / "recipe.yaml"
    recipe.write_text("data: {path: x}\ntrain: {length: 4, global_batch_size: 8}\nlog: {every: 1}\n")
    command = [PYTHON, "-m", "partialfc.train", recipe, *settings, backbone]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # mxnet brings an OpenMP of its own, with its own number
    )
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, (folder / reader / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_its_reader_gives_the_same_samples_in_a_run_and_by_themselves(tmp_path):
    write_pack(tmp_path, 5, 4)
    mxnet("compare", tmp_path)
    found = losses(tmp_path, "mxnet")
    assert len(found) == 4 and found == losses(tmp_path, "native")


def test_packs_of_im2rec_load(tmp_path):
    """Keys from 0, in the order of a shuffled list; no key-0 header, no property."""
    lines = []
    for number, (label, image) in enumerate([(1, 0), (0, 0), (2, 1), (1, 1), (0, 1), (2, 0)]):
        (tmp_path / f"images/{label}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"images/{label}/{image}.jpg").write_bytes(face(label, image))
        lines.append(f"{number}\t{label}\t{label}/{image}.jpg\n")
    (tmp_path / "train.lst").write_text("".join(lines))
    command = [PYTHON, "-m", "mxnet.tools.im2rec", "--pass-through", tmp_path / "train", tmp_path / "images"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert (tmp_path / "train.rec").exists(), done.stdout + done.stderr
    dataset = RecordDataset(tmp_path)
    assert dataset.num_classes == 3 and dataset.dialect.startswith("im2rec")
    found = [(dataset.label(sample), dataset.encoded_image(sample)) for sample in range(len(dataset))]
    assert found == [
        (1, face(1, 0)),
        (0, face(0, 0)),
        (2, face(2, 1)),
        (1, face(1, 1)),
        (0, face(0, 1)),
        (2, face(2, 0)),
    ]
