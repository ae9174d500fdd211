"""Run a function on several gloo ranks of this machine; and what such a function needs.

The workers are started once, and each call only forms a new group among the first `world_size` of them.
"""

import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from helpers import quick_start


class RankPool:
    def __init__(self) -> None:
        self._workers: list[tuple[BaseProcess, Connection]] = []

    def run(self, world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 180) -> list:
        """`function(*args)` on every rank at once: its results in rank order, or a rank's traceback."""
        while len(self._workers) < world_size:
            self._workers.append(_start_worker(len(self._workers)))
        pipes = [pipe for _, pipe in self._workers[:world_size]]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            for pipe in pipes:
                pipe.send((world_size, str(Path(folder, "store")), function, args))
            return self._collect(pipes, timeout)

    def _collect(self, pipes: list[Connection], timeout: float) -> list[Any]:
        results: dict[Connection, Any] = {}
        while waiting := [pipe for pipe in pipes if pipe not in results]:
            ready = wait(waiting, timeout)
            if not ready:
                self.close()  # a rank stuck in a collective can only be killed
                late = [pipes.index(pipe) for pipe in waiting]
                raise TimeoutError(f"ranks {late} of {len(pipes)} did not finish in {timeout} s")
            for pipe in ready:
                results[pipe], failure = pipe.recv()
                if failure:
                    self.close()
                    raise AssertionError(f"rank {pipes.index(pipe)} of {len(pipes)}:\n{failure}")
        return [results[pipe] for pipe in pipes]

    def close(self) -> None:
        for process, _ in self._workers:
            process.kill()
            process.join()
        self._workers.clear()


def _start_worker(rank: int) -> tuple[BaseProcess, Connection]:
    ours, theirs = Pipe()
    process = quick_start.started(_serve, rank, theirs)
    theirs.close()
    return process, ours


def _serve(rank: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            world_size, store, function, args = pipe.recv()
        except EOFError:  # the pool's process is gone; these are no daemons, which may not have data workers
            return
        try:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
            result = function(*args), None
        except Exception:  # whatever a test's function raises is for the test's process to tell
            result = None, traceback.format_exc()
        if dist.is_initialized():
            dist.destroy_process_group()  # before the answer, after which the store's folder is removed
        pipe.send(result)


def mine(rows: torch.Tensor) -> torch.Tensor:
    """This rank's block; a batch of one image per rank is made by giving every rank the whole of it."""
    size = dist.get_world_size()
    return rows.chunk(size)[dist.get_rank()]
