"""The signals of a run's helper processes; those of whole runs are in test_stopping.py."""

import subprocess
import sys

HELPER = """
import multiprocessing, signal
from partialfc.runtime.process.signals import STOP_SIGNALS, block_stop_signals
with block_stop_signals():
    multiprocessing.get_context("spawn").Queue()  # whose semaphore starts Python's tracker of such, if nothing has
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= set(STOP_SIGNALS)
assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""


def test_no_signal_reaches_the_first_helper_of_a_process():
    done = subprocess.run([sys.executable, "-c", HELPER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
