"""The cached index is the index, for every process, until a file changes."""

import os
import pickle
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from partialfc.data import index
from partialfc.data.index import cached_index, sorted_index
from partialfc.data.recordio import CorruptRecordError, Header, RecordFile, RecordWriter
from partialfc.errors import InputError


@pytest.fixture(autouse=True)
def everything_is_worth_caching(monkeypatch, tmp_path):
    monkeypatch.setattr(index, "MIN_CACHED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(folder: Path, keys: list[int]) -> Path:
    folder.mkdir(exist_ok=True)
    with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        for key in keys:
            writer.write(key, Header(key % 7, key), b"payload %d" % key)
    return folder / "train.rec"


def content(file: RecordFile) -> dict[int, bytes]:
    return {int(key): bytes(file[int(key)][1]) for key in file.keys}


@pytest.mark.parametrize("keys", [[0, 1, 2, 3], [3, 1, 2], [5, 900, 7]], ids=str)
@pytest.mark.parametrize("with_index", [True, False])
def test_from_the_cache_it_is_the_same(tmp_path, keys, with_index):
    path = write(tmp_path / "pack", keys)
    if not with_index:
        path.with_suffix(".idx").unlink()
    first = RecordFile(path)
    with (
        mock.patch.object(RecordFile, "_scan"),
        mock.patch.object(RecordFile, "_read_index_file"),
    ):  # neither is called
        again = RecordFile(path)
    assert isinstance(again._index.offsets, np.memmap)
    expected = {key: b"payload %d" % key for key in keys}
    assert content(first) == content(again) == content(pickle.loads(pickle.dumps(again))) == expected
    assert list(again.keys) == sorted(keys) and 4 not in again and keys[0] in again
    with pytest.raises(KeyError):
        again[10**6]


def test_another_process_gets_the_map_and_not_the_numbers(tmp_path):
    count = 100_000
    source = tmp_path / "source"
    source.write_text("x")
    made = cached_index([source], lambda: (np.arange(count), np.arange(count) * 8))
    assert len(pickle.dumps(made)) < 1000
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(offset_of, (made, count - 1)) == 8 * (count - 1)


def offset_of(made: index.Index, key: int) -> int | None:
    return made.find(key)


def test_a_changed_file_is_noticed(tmp_path):
    path = write(tmp_path / "pack", [1, 2, 3])
    RecordFile(path)
    write(tmp_path / "pack", [1, 2, 3, 4])
    assert list(RecordFile(path).keys) == [1, 2, 3, 4]
    os.utime(path, ns=(1, 1))
    with mock.patch.object(RecordFile, "_read_index_file", return_value=(np.array([9]), np.array([0]))):
        assert list(RecordFile(path).keys) == [9]


def test_the_cache_of_another_file_is_noticed(tmp_path):
    one, two = write(tmp_path / "one", [1, 2, 3]), write(tmp_path / "two", [4, 5, 6])
    RecordFile(one)
    (tmp_path / "two/.train.idx.cache").write_bytes((tmp_path / "one/.train.idx.cache").read_bytes())
    assert list(RecordFile(two).keys) == [4, 5, 6]


@pytest.mark.parametrize("length", [0, 5, 63, 64, 70])
def test_a_cache_that_was_cut_off_is_made_again(tmp_path, length):
    path = write(tmp_path / "pack", [1, 2, 3])
    RecordFile(path)
    cache = tmp_path / "pack/.train.idx.cache"
    whole = cache.read_bytes()
    cache.write_bytes(whole[:length])
    assert list(RecordFile(path).keys) == [1, 2, 3] and cache.read_bytes() == whole


def test_beside_a_pack_that_cannot_be_written_it_is_kept_for_the_user(tmp_path):
    source = tmp_path / "source"
    source.write_text("x")

    def build():
        return np.array([1]), np.array([8])

    def cannot_write_beside(path: Path):
        if path.parent == tmp_path:
            raise PermissionError
        return atomic_write(path)

    atomic_write = index.atomic_write
    with mock.patch.object(index, "atomic_write", cannot_write_beside):
        assert cached_index([source], build).cache.parent == tmp_path / "cache/partialfc"
    assert cached_index([source], lambda: pytest.fail("made again")).find(1) == 8


def test_small_files_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "MIN_CACHED_BYTES", 1 << 20)
    path = write(tmp_path / "pack", [1, 2, 3])
    RecordFile(path)
    assert {it.name for it in path.parent.iterdir()} == {"train.rec", "train.idx"}


def test_a_key_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="key 2 occurs in several records"):
        sorted_index(np.array([2, 1, 2]), np.array([0, 8, 16]))
    with pytest.raises(CorruptRecordError, match=r"train.idx: key 2 occurs in several records"):
        RecordFile(write(tmp_path / "pack", [1, 2, 2]))
