"""benchmarks/ijb.py makes a set of any size, reads it and scores it."""

import re

from helpers.calling import called_module


def test_a_small_one():
    found = called_module("benchmarks.ijb", "--share", "0.005", "--width", "32").stdout
    assert re.search(r"^reading the lists: [\d.]+ s, \d+ MiB more at most$", found, re.MULTILINE)
    assert re.search(r"^TAR@FAR 1e-4 .* rank1 \d+\.\d+%", found, re.MULTILINE)
