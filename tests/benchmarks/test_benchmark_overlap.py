"""benchmarks/overlap.py plants images of a set in a pack, and they are found."""

import re

from helpers.calling import called_module
from helpers.faces import write_pack, write_pairs


def test_planted_images_are_found(tmp_path):
    write_pack(tmp_path / "pack", 10, 3, 112)
    write_pairs(tmp_path / "lfw.bin", 20, 112)
    done = called_module("benchmarks.overlap", tmp_path / "pack", tmp_path / "lfw.bin", "--images", "12")
    found = re.fullmatch(
        r"(\d+) of 12 planted images found, 0 others of the set\n30 images of the pack and 40 .*\n",
        done.stdout,
    )
    missing = called_module("benchmarks.overlap", tmp_path / "none", tmp_path / "lfw.bin", "--images", "12")
    assert missing.returncode == 2 and "none: no such folder; expected train.rec" in missing.stderr
    assert found and int(found[1]) >= 10, (
        done.stdout
    )  # noise such as of these is lost where an image is made smaller
