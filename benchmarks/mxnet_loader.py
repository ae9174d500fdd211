"""mxnet's usual pipeline, timed with mxnet itself: `.venv-mxnet/bin/python benchmarks/mxnet_loader.py REC KEY...`.

For each sample: read_idx, unpack, mx.image.imdecode, random flip, float, (x - 127.5) / 127.5, channels first.
Prints images per second of one process.
"""

import random
import sys
import time

import mxnet
import numpy as np
from mxnet.recordio import MXIndexedRecordIO, unpack


def load_sample(records: MXIndexedRecordIO, key: int) -> np.ndarray:
    _, content = unpack(records.read_idx(key))
    image = mxnet.image.imdecode(content).asnumpy()
    if random.random() < 0.5:
        image = image[:, ::-1]
    return ((image.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)


def main() -> None:
    path, keys = sys.argv[1], [int(key) for key in sys.argv[2:]]
    count = len(keys)
    records = MXIndexedRecordIO(path.replace(".rec", ".idx"), path, "r")
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        for start in range(0, count, 128):
            np.stack([load_sample(records, key) for key in keys[start : start + 128]])
        best = max(best, count / (time.perf_counter() - began))
    print(best)


if __name__ == "__main__":
    main()
