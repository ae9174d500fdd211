"""Images whose headers promise more pixels than memory should hold."""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.faces import face

from partialfc.data import recordio
from partialfc.data.recordio import RecordWriter

SIDE = 32_000  # 3 GB as RGB
SCRIPT = """
import resource, sys
from pathlib import Path
from partialfc.data import images
from partialfc.errors import InputError
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()  # not less than that of the parent process
for path in sys.argv[1:]:
    try:
        images.read(Path(path))
    except InputError as error:
        print(error)
print(peak() - before)
"""


def large_jpeg() -> bytes:
    content = bytearray(face(0, 0))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", SIDE, SIDE)
    return bytes(content)


def large_png() -> bytes:
    content = bytearray(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    content[16:24] = struct.pack(">II", SIDE, SIDE)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def test_images_with_too_many_pixels_are_refused_before_memory_is_allocated(tmp_path):
    paths = [tmp_path / "a.jpg", tmp_path / "a.png"]
    for path, content in zip(paths, (large_jpeg(), large_png()), strict=True):
        path.write_bytes(content)
    command = [sys.executable, "-c", SCRIPT, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *errors, megabytes = done.stdout.splitlines()
    for path, error in zip(paths, errors, strict=True):
        size = path.stat().st_size
        assert (
            error == f"{path}: {size} bytes; expected at most 100000000 pixels (OPENCV_IO_MAX_IMAGE_PIXELS)"
        )
    assert int(megabytes) < 500


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_record_with_too_many_pixels_is_an_unreadable_one(tmp_path, command):
    folder = tmp_path / "pack"
    folder.mkdir()
    with RecordWriter(folder / "train.rec", folder / "train.idx") as writer:
        for key in range(1, 17):
            content = large_jpeg() if key == 16 else face(key % 4, key)
            writer.write(key, recordio.Header(float(key % 4), key), content)
    (folder / "property").write_text("4,32,32")
    settings = [
        f"data={{path: {folder}, num_workers: 0, on_corrupt: skip}}", "train={length: 4, global_batch_size: 8}",
        "train.micro_batch_size=4", "schedule.warmup=0", "evaluation.every=0", f"output={tmp_path}/output",
    ]  # fmt: skip
    arguments = (
        ["check", folder] if command == "check" else ["train", "quickstart", *settings, "--ranks", "1"]
    )
    done = subprocess.run(
        [sys.executable, "-m", "partialfc", *arguments], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    if command == "check":
        assert done.returncode == 1 and "record at byte " in done.stdout and "100000000 pixels" in done.stdout
    else:
        assert done.returncode == 0, done.stderr
        summary = json.loads(Path(tmp_path, "output/summary.json").read_text())
        assert summary["unreadable"] == {"records": 1, "keys": [16]}
