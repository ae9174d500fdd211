"""Runs under the real mxnet: writes the records of a JSON-lines file with it, or says in such lines what it reads.

python mxnet_side.py write FOLDER    FOLDER/records.jsonl -> FOLDER/train.rec, train.idx
python mxnet_side.py compare FOLDER  fails unless FOLDER is the same to our reader and to mxnet's
python mxnet_side.py read FOLDER     FOLDER/train.rec, train.idx -> FOLDER/records.jsonl
"""

import base64
import json
import pickle
import sys
from pathlib import Path

import numpy as np
from mxnet.recordio import IRHeader, MXIndexedRecordIO, pack, unpack

from partialfc.data import RecordDataset


def write(folder: Path) -> None:
    records = MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "w")
    for line in (folder / "records.jsonl").read_text().splitlines():
        key, label, id_, id2, payload = json.loads(line)
        records.write_idx(key, pack(IRHeader(0, label, id_, id2), base64.b64decode(payload)))
    records.close()


def read(folder: Path) -> None:
    records = MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")
    with (folder / "records.jsonl").open("w") as out:
        for key in records.keys:
            header, payload = unpack(records.read_idx(key))
            label = header.label if header.flag == 0 else header.label.tolist()
            line = [key, label, header.id, header.id2, base64.b64encode(payload).decode()]
            print(json.dumps(line), file=out)


def compare(folder: Path) -> None:
    """Ours, and mxnet's reader behind it: the same samples, also after a journey to another process."""
    native, theirs = RecordDataset(folder), RecordDataset(folder, reader="mxnet")
    theirs = pickle.loads(pickle.dumps(theirs))
    assert len(native) == len(theirs) and native.num_classes == theirs.num_classes
    for sample in range(len(native)):
        (pixels, label), (same_pixels, same_label) = native[sample], theirs[sample]
        assert label == same_label and np.array_equal(pixels, same_pixels), sample


if __name__ == "__main__":
    {"write": write, "read": read, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
