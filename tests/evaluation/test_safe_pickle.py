"""Pickles that would run something, or take more memory or time than their size allows."""

import pickle

import numpy as np
import pytest

from partialfc.evaluation import safe_pickle

NDARRAY, DTYPE = b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back(protocol):
    data = (
        [b"\xff\0", "text", 1, -(2**70), 1.5, True, None],
        (),
        [np.arange(5, dtype=">i4"), np.float32(2.5)],
    )
    found = safe_pickle.safe_load(pickle.dumps(data, protocol))
    assert found[:2] == data[:2]
    assert found[2][0].tolist() == [0, 1, 2, 3, 4]
    assert found[2][1] == np.float32(2.5)


@pytest.mark.parametrize(
    "made", [np.array([b"ab", b"c"]), np.array([b"ab", None], object), np.eye(3, order="F")]
)
def test_arrays_of_other_kinds(made):
    found = safe_pickle.safe_load(pickle.dumps(made))
    assert found.dtype == made.dtype and found.tolist() == made.tolist()


def test_the_type_that_all_arrays_share_stays_as_it_is():
    safe_pickle.safe_load(pickle.dumps(np.arange(3, dtype=">i8")))
    swapped = (
        DTYPE
        + b"(X\x02\x00\x00\x00i8\x89\x88tR(K\x03X\x01\x00\x00\x00>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb."
    )
    assert safe_pickle.safe_load(b"\x80\x02" + swapped) == np.dtype(">i8")
    assert np.dtype("i8").isnative


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (NDARRAY + b"(I1000000000000\ntR.", "not callable"),  # memory for a trillion elements
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(" + NDARRAY + b"(I1000000000\ntC\x01btR.",
            "unlike numpy's",
        ),
        (DTYPE + b"(X\x0b\x00\x00\x00i4,i4,(9,)fI0\nI1\ntR.", "an array of i4,i4"),
        (
            b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.",
            "encodes as 'hex'",
        ),  # grows each time
        (b"}.", "125"),  # a dict
        (b"cbuiltins\neval\n.", "names builtins.eval"),
        (b"c_codecs\nencode\nK\x01b.", "sets the state of a function"),
        (b"\x8a\x01\x01\x81.", "129"),  # NEWOBJ
    ],
)
def test_more_than_plain_data_is_refused(content, message):
    with pytest.raises(Exception, match=message):
        safe_pickle.safe_load(b"\x80\x04" + content)


def test_a_place_far_out_in_the_memo_takes_no_table():
    assert safe_pickle.safe_load(b"\x80\x02K\x07r\xff\xff\xff\x7f.") == 7


def test_a_length_beyond_the_file_sets_nothing_aside():
    with pytest.raises(EOFError):
        safe_pickle.safe_load(b"\x80\x05\x96" + (1 << 50).to_bytes(8, "little") + b"abc.")
