"""Record reader of mxnet itself, if it is installed (requirements-mxnet.txt)."""

import importlib
from pathlib import Path

import numpy as np

from partialfc.data.index import IntArray
from partialfc.data.recordio import CorruptRecordError, Header
from partialfc.errors import InputError


class MxnetRecords:
    """Same as recordio.RecordFile, with mxnet.recordio.MXIndexedRecordIO, which requires an .idx file."""

    def __init__(self, path_rec: Path) -> None:
        try:
            mxnet = importlib.import_module("mxnet.recordio")
        except ImportError as error:
            raise InputError(
                f"data.reader: mxnet: {error}; expected an environment of requirements-mxnet.txt"
            ) from None
        path_idx = path_rec.with_suffix(".idx")
        if not path_idx.exists():
            raise FileNotFoundError(
                f"data.reader: mxnet: {path_idx} does not exist; the native reader does not need it"
            )
        self.path, self._unpack = path_rec, mxnet.unpack
        self._records = mxnet.MXIndexedRecordIO(str(path_idx), str(path_rec), "r")
        self.keys: IntArray = np.array(sorted(self._records.keys), np.int64)

    def __getitem__(self, key: int) -> tuple[Header, bytes]:
        try:
            header, payload = self._unpack(self._records.read_idx(key))
        except (RuntimeError, TypeError) as error:  # mxnet's own errors, and None at the end of the file
            raise CorruptRecordError(f"{self.path}, key {key}: {error}") from None
        return Header(header.label, header.id, header.id2, header.flag), payload

    def prefetch_hint(self, keys: IntArray) -> None:
        """Do nothing: mxnet has no prefetching."""
