"""tools/benchmark_ijb.py makes a set of any size, reads it and scores it."""

import re
import subprocess
import sys
from pathlib import Path


def test_a_small_one():
    tool = Path(__file__).parents[1] / "tools/benchmark_ijb.py"
    command = [sys.executable, tool, "--share", "0.005", "--width", "32"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^reading the lists: [\d.]+ s, \d+ MiB more at most$", found, re.MULTILINE)
    assert re.search(r"^TAR@FAR 1e-4 .* rank1 \d+\.\d+%", found, re.MULTILINE)
