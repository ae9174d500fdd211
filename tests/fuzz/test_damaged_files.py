import os
import subprocess
import sys
from pathlib import Path

from damaged_files import CASES


def test_a_sample_of_damaged_files_does_no_harm():
    """One damage for each command; the script itself tries all."""
    script = Path(__file__).with_name("damaged_files.py")
    done = subprocess.run(
        [sys.executable, script, "--sample", "1"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(CASES)
