"""Processes of the data workers: their start, the shared memory that they need, and their death."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.process import parent_process
from types import TracebackType

import cv2

from partialfc.data import decoder_warnings
from partialfc.errors import InputError
from partialfc.runtime import memory_limits, platform
from partialfc.runtime.exit_codes import WorkerKilledError

_EXIT_DELAY = 2  # seconds between the closed connection of a worker that is killed and its exit


def check_shared_memory(workers: int, *, buffers: int, batch_size: int, sample_bytes: int) -> None:
    """Check that the buffers of all workers of this machine fit into shared memory.

    Args:
        workers: Workers of a rank.
        buffers: Batches that a worker holds.
        batch_size: Samples of a rank's batch.
        sample_bytes: Bytes of a sample.

    Raises:
        InputError: If they do not fit.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    problem = memory_limits.check_shared_memory(ranks * workers * buffers * batch_size * sample_bytes)
    if problem is not None:
        raise InputError(
            f"{problem} for {ranks} ranks x {workers} workers x {buffers} buffers of {batch_size} images; "
            "enlarge it (docker run --shm-size), or lower data.num_workers or train.global_batch_size"
        )


def initialize(worker: int) -> None:
    """Prepare a worker process; `worker_init_fn` of a DataLoader."""
    rank = parent_process()
    assert rank is not None and rank.pid is not None
    platform.exit_with_parent(rank.pid)
    cv2.setNumThreads(0)  # workers provide the parallelism; torch sets its own threads to 1
    sys.excepthook = _print_exception
    decoder_warnings.capture()


def restore_sigchld() -> None:
    """Remove torch's signal handler, which raises an error about a killed worker anywhere in the main thread.

    `raise_if_killed` reports it where batches are read.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def raise_if_killed(workers: Sequence[SpawnProcess], rank: int) -> None:
    """Raise an error if a worker was killed by a signal.

    Args:
        workers: Workers of a rank.
        rank: The rank.

    Raises:
        WorkerKilledError: If there is one.
    """
    ended = wait([it.sentinel for it in workers], _EXIT_DELAY) if workers else []
    for number, worker in enumerate(workers):
        if worker.sentinel in ended:
            worker.join()  # the sentinel is closed shortly before the exit code is known
        if worker.exitcode is not None and worker.exitcode < 0:
            raise WorkerKilledError(
                f"data worker {number} of rank {rank} on {socket.gethostname()} was killed by "
                f"{memory_limits.explain_signal(-worker.exitcode)}; lower data.num_workers ({len(workers)} per "
                "rank) or train.global_batch_size, then resume with the same command",
                -worker.exitcode,
            )


def _print_exception(
    type_: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    # A killed rank leaves the thread that hands over images in this state.
    if not issubclass(type_, (ConnectionError, EOFError)):
        sys.__excepthook__(type_, error, traceback)
