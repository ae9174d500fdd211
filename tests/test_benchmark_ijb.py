"""tools/benchmark_ijb.py makes a set of any size, reads it and scores it."""

import re
from pathlib import Path

from calling import called_tool


def test_a_small_one():
    tool = Path(__file__).parents[1] / "tools/benchmark_ijb.py"
    found = called_tool(tool, "--share", "0.005", "--width", "32").stdout
    assert re.search(r"^reading the lists: [\d.]+ s, \d+ MiB more at most$", found, re.MULTILINE)
    assert re.search(r"^TAR@FAR 1e-4 .* rank1 \d+\.\d+%", found, re.MULTILINE)
