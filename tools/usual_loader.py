"""The usual mxnet pipeline, timed under the real mxnet: `.venv-mxnet/bin/python tools/usual_loader.py PACK IMAGES`.

Each sample: read_idx, unpack, mx.image.imdecode, a flip by chance, float, (x - 127.5) / 127.5, channels first. Prints
images a second of one process.
"""

import random
import sys
import time

import mxnet  # type: ignore[import-not-found]
import numpy as np
from mxnet.recordio import MXIndexedRecordIO, unpack  # type: ignore[import-not-found]


def sample(records: MXIndexedRecordIO, key: int) -> np.ndarray:
    _, content = unpack(records.read_idx(key))
    image = mxnet.image.imdecode(content).asnumpy()
    if random.random() < 0.5:
        image = image[:, ::-1]
    return ((image.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)


def main() -> None:
    folder, count = sys.argv[1], int(sys.argv[2])
    records = MXIndexedRecordIO(f"{folder}/train.idx", f"{folder}/train.rec", "r")
    header, _ = unpack(records.read_idx(0))
    last = int(header.label[0]) - 1
    keys = [random.Random(0).randint(1, last) for _ in range(count)]
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        for start in range(0, count, 128):
            np.stack([sample(records, key) for key in keys[start : start + 128]])
        best = max(best, count / (time.perf_counter() - began))
    print(best)


if __name__ == "__main__":
    main()
