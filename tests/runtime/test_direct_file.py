"""Files past the system's cache: what is written is what is there, also where the file system does not know such files."""

import errno
import os
from contextlib import closing
from pathlib import Path

import pytest

from partialfc.runtime.checkpoint import direct_file
from partialfc.runtime.checkpoint.direct_file import DirectFile


def written(path: Path, pieces: list[bytes]) -> bytes:
    with closing(DirectFile(path)) as file:
        for piece in pieces:
            file.write(memoryview(piece))
        file.sync()
    return path.read_bytes()


def pieces_of(sizes: list[int]) -> list[bytes]:
    return [os.urandom(size) for size in sizes]


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [1],
        [4096],
        [direct_file._BUFFER],
        [direct_file._BUFFER + 1],
        [3, direct_file._BUFFER, 5, 4096, 7],
        [100] * 50,
    ],
)
def test_what_is_written_is_there(tmp_path, sizes):
    pieces = pieces_of(sizes)
    assert written(tmp_path / "file", pieces) == b"".join(pieces)


def test_where_the_file_system_refuses_to_open_one(tmp_path, monkeypatch):
    """And makes the file nevertheless, as some do."""
    right = os.open

    def refusing(path, flags, mode=0o777):
        if flags & direct_file._DIRECT:
            os.close(right(path, flags & ~direct_file._DIRECT, mode))
            raise OSError(errno.EINVAL, "Invalid argument", str(path))
        return right(path, flags, mode)

    monkeypatch.setattr(direct_file.os, "open", refusing)
    pieces = pieces_of([direct_file._BUFFER + 5])
    assert written(tmp_path / "file", pieces) == pieces[0]


def test_where_the_file_system_refuses_to_write(tmp_path, monkeypatch):
    """A part of a buffer, and then no more past the cache."""
    right, calls = os.write, []

    def refusing(file, content):
        calls.append(len(content))
        if len(calls) == 1:
            return right(file, content[: direct_file._BUFFER // 2])
        if len(calls) == 2:
            raise OSError(errno.EINVAL, "Invalid argument")
        return right(file, content)

    monkeypatch.setattr(direct_file.os, "write", refusing)
    pieces = pieces_of([direct_file._BUFFER, 5])
    assert written(tmp_path / "file", pieces) == b"".join(pieces) and len(calls) == 4


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(file, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(direct_file.os, "write", full)
    with pytest.raises(OSError, match=r"No space left on device.*file"):
        written(tmp_path / "file", pieces_of([10]))


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        DirectFile(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
