import os
import signal
from multiprocessing import get_context

import pytest

from partialfc.data.worker_processes import raise_if_killed
from partialfc.runtime.exit_codes import WorkerKilledError


class DyingWorker:
    """Its sentinel is closed, but the exit code is known only after a wait: the kernel closes files first."""

    exitcode = None

    def __init__(self):
        self.sentinel, write_end = os.pipe()
        os.close(write_end)

    def join(self):
        self.exitcode = -signal.SIGKILL


def test_a_worker_is_waited_for_once_its_files_are_closed():
    worker = DyingWorker()
    with pytest.raises(WorkerKilledError, match=r"data worker 0 of rank 3 on .* was killed by SIGKILL"):
        raise_if_killed([worker], rank=3)
    os.close(worker.sentinel)


def test_workers_that_live_or_have_finished_are_no_error():
    raise_if_killed([], rank=0)
    worker = get_context("spawn").Process(target=os.getpid)
    worker.start()
    worker.join()
    raise_if_killed([worker], rank=0)
