"""Files that were spoilt at random, and those that once did harm. tests/fuzz/long_run.py is the long form."""

import struct
from pathlib import Path

import formats
import numpy as np
import pytest
from formats import FORMATS, attempt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partialfc.data.recordio import Header, frame, pack

EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=12)), max_size=6)


@pytest.mark.parametrize("name", FORMATS)
@given(choice=st.integers(0, 100), edits=EDITS)
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_spoilt_file_is_read_or_refused_in_a_line(tmp_path, name, choice, edits):
    which = FORMATS[name]
    if not any(tmp_path.iterdir()):
        which.surroundings(tmp_path)
    examples = which.examples()
    data = examples[choice % len(examples)]
    for where, length, inserted in edits:
        place = round(where * len(data))
        data = data[:place] + inserted + data[place + length :]
    attempt(which, data, tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_the_examples_are_taken(tmp_path, name):
    which = FORMATS[name]
    which.surroundings(tmp_path)
    taken = [attempt(which, example, tmp_path) for example in which.examples()]
    assert any(taken)


def record(header: Header, payload: bytes = b"") -> bytes:
    return frame(pack(header, payload))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("idx", b"\x1f\r\x1f"),  # numpy warned that there are no lines
        ("rec", record(Header(1.0, 1 << 63))),  # an id that is no int64
        ("rec", record(Header(np.array([1.3e8, 1.4e8]), 0))),  # gigabytes for the images that it speaks of
        ("rec", record(Header(np.array([np.inf, np.inf]), 0))),
        ("rec", record(Header(np.array([np.nan, 5.0]), 0))),
        ("rec", record(Header(np.array([7.0, 3.0]), 0))),
        ("bin", b"cnumpy._core." + b"\0" * 60 + b"multiarray\n_reconstruct\n."),  # not for a terminal
        ("bin", b"F" + b"x" * 2000 + b"\n."),  # a line of the file's length
        ("recipe", b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]"),  # doubles in every line
        ("recipe", b"\x1b[2J: 1"),
        ("lst", b"1\t\x1b[2J.jpg\t2\n\x00\n"),
        ("property", "\u0661,8,8".encode()),
    ],
)
def test_what_once_did_harm_is_refused(tmp_path, name, data):
    FORMATS[name].surroundings(tmp_path)
    assert not attempt(FORMATS[name], data, tmp_path)


def test_what_runs_something_while_it_reads_is_found(tmp_path):
    def removes(path: Path) -> None:
        path.unlink()

    with pytest.raises(SystemError, match=r"os.remove while a file was read"):
        attempt(formats.Format("a", list, formats.nothing, removes), b"", tmp_path)
    with pytest.raises(struct.error):
        attempt(
            formats.Format("a", list, formats.nothing, lambda path: struct.unpack("I", b"")),
            b"",
            tmp_path,
        )
