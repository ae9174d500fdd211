import errno
import os

import pytest

from partialfc.errors import InputError
from partialfc.input_files import read_file
from partialfc.runtime.error_messages import format_error


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message_of_reading(path):
    with pytest.raises(OSError, match="No such file") as raised:
        read_file(path)
    return format_error(raised.value)


def test_a_missing_file_names_those_of_other_suffixes_and_case(here):
    (here / "faces/ann").mkdir(parents=True)
    for name in ("ann_0001.png", "ANN_0001.JPG", "ann_0002.jpg"):
        (here / "faces/ann" / name).touch()
    path = here / "faces/ann/ann_0001.jpg"
    assert message_of_reading(path) == f"{path}: No such file or directory; found ANN_0001.JPG, ann_0001.png"
    other = here / "faces/ann/ann_0003.jpg"
    assert message_of_reading(other) == f"{other}: No such file or directory"


def test_a_missing_folder_is_named(here):
    (here / "faces").mkdir()
    path = here / "faces/bob/sub/bob_0001.jpg"
    assert message_of_reading(path) == f"{path}: No such file or directory; {here}/faces has no bob"


def test_paths_of_messages_are_absolute(here):
    (here / "pack").mkdir()
    for text, expected in {
        "pack: no such": f"{here}/pack: no such",
        "pack: damaged": f"{here}/pack: damaged",
        "pack, line 3: damaged": f"{here}/pack, line 3: damaged",
        "checkpoint pack: old": f"checkpoint {here}/pack: old",
        "nowhere/x.rec: no such folder": f"{here}/nowhere/x.rec: no such folder",
        "train.length: 0, expected 1": "train.length: 0, expected 1",
        f"{here}/pack: damaged": f"{here}/pack: damaged",
        "https://host/x: not found": "https://host/x: not found",
        "no path at all": "no path at all",
        "recipe quick: not found": "recipe quick: not found",
    }.items():
        assert format_error(InputError(text)) == expected


def test_other_errors(here):
    assert format_error(OSError(errno.EACCES, "Permission denied", "a")) == f"{here}/a: Permission denied"
    assert "MiB free" in format_error(OSError(errno.ENOSPC, "No space left on device", str(here)))
    assert format_error(ValueError()) == "ValueError"
    assert format_error(InputError("a\x1b[31m\nb")) == "a\\x1b[31m b"
    assert format_error(FileNotFoundError(errno.ENOENT, "No such file", os.fsencode(here / "a\udc80")))
