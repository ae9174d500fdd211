"""Loading of pickles of plain data: nothing in them runs, and memory is limited to a small multiple of their size.

Python's unpickler is restricted to a list of operations and four functions, all of them in this module. Dicts
are excluded, since their keys can take exponential time to hash if tuples share members. The C unpickler is
excluded, since its table is as large as a file requests.
"""

import io
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from partialfc.errors import InputError

# Named as in pickle; every protocol writes lists, tuples, numbers, flags, text and bytes with these.
_ALLOWED_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2"),
    *("LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("LIST", "EMPTY_LIST", "APPEND", "APPENDS", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "MEMOIZE"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
}


class UnsafePickleError(InputError):
    """Pickle that requires more than plain data."""


def safe_load(content: bytes) -> Any:
    """Return lists, tuples, numbers, text, bytes and numpy arrays, pickled by python 2 or 3.

    A damaged pickle can raise any exception.

    Raises:
        UnsafePickleError: If it refers to anything else.
    """
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


def _encode(text: str, encoding: str | bytes) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise UnsafePickleError(
            f"encodes as {str(encoding)[:20]!r}; expected latin1, as protocol 2 writes bytes"
        )
    return text.encode("latin1")


def _reconstruct(kind: Any, shape: Any, dtype: Any) -> Any:
    if kind is not _NDARRAY_PLACEHOLDER or shape != (0,):
        raise UnsafePickleError("creates an array unlike numpy's; expected numpy arrays")
    return np.ndarray((0,), np.int8)  # filled by its state


def _dtype(name: Any, *_: Any) -> Any:
    text = name.decode("latin1") if isinstance(name, bytes) else str(name)
    if not re.fullmatch(r"[<>|=]?[biufSUO]\d{0,9}", text):
        raise UnsafePickleError(f"an array of {text[:40]}; expected bytes, numbers or flags")
    return np.dtype(text, copy=True)  # a copy, since its state is set: the original is shared by all arrays


def _scalar(dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
        raise UnsafePickleError("an invalid number; expected bytes, numpy arrays and lists")
    return np.frombuffer(data, dtype, 1)[0]


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    return np.frombuffer(data, dtype).reshape(shape, order=order)


_NDARRAY_PLACEHOLDER = object()  # stands for the class, which would create arrays of any size when called
_ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY_PLACEHOLDER,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED_GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED_GLOBALS[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED_GLOBALS[f"{_core}.numeric", "_frombuffer"] = _frombuffer


def _set_state(unpickler: Any) -> None:
    """Set the state of an array, or of the type of its elements; types with fields are refused."""
    state = unpickler.stack.pop()
    made = unpickler.stack[-1]
    whole = isinstance(made, np.dtype) and isinstance(state, tuple) and state[2:5] == (None,) * 3
    if not (whole or isinstance(made, np.ndarray)):
        raise UnsafePickleError(
            f"sets the state of a {type(made).__name__}; expected bytes, numpy arrays and lists only"
        )
    made.__setstate__(state)


def _read_bytearray(unpickler: Any) -> None:
    """Read a bytearray without allocating the size that the file claims."""
    (length,) = struct.unpack("<Q", unpickler.read(8))
    unpickler.append(bytearray(unpickler.read(length)))


class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: step
        for code, step in pickle._Unpickler.dispatch.items()
        if code in {getattr(pickle, name)[0] for name in _ALLOWED_OPCODES}
    } | {pickle.BUILD[0]: _set_state, pickle.BYTEARRAY8[0]: _read_bytearray}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED_GLOBALS[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"names {f'{module}.{name}'[:60]}; expected bytes, numpy arrays and lists only"
            ) from None
