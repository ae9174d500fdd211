"""Streams, threads and host memory of a rank that has a GPU of its own, on CUDA tensors that hold no numbers."""

import ast
import resource
import threading
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.fake_cuda import DEVICE, fake_cuda
from torch import Tensor

from partialfc.head.buffers import BufferPool
from partialfc.head.sampling import ActiveClasses
from partialfc.head.storage.host import HostStorage
from partialfc.runtime import host_memory
from partialfc.runtime.checkpoint import state_snapshot, writer
from partialfc.runtime.process import limits

ROOT = Path(__file__).parents[2]


class Streams:
    """The current stream, where `torch.cuda.stream` is entered."""

    def __init__(self) -> None:
        self.current = "default"

    @contextmanager
    def entered(self, stream: object):
        before, self.current = self.current, "copies"
        yield
        self.current = before


@pytest.fixture
def staged(monkeypatch):
    """Rows in host memory for a GPU, the stream of each allocation, and tensors that were recorded on another stream."""
    streams, allocated, recorded = Streams(), [], []
    get = BufferPool.get

    def noted(memory: BufferPool, *arguments):
        if memory._device.type == "cuda":
            allocated.append(streams.current)
        return get(memory, *arguments)

    with fake_cuda(1) as fake, fake:
        monkeypatch.setattr(torch.cuda, "stream", streams.entered)
        monkeypatch.setattr(BufferPool, "get", noted)
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: recorded.append(streams.current))
        yield HostStorage({"centers": torch.zeros(50, 4)}, torch.device(DEVICE)), allocated, recorded


def active(first: int) -> ActiveClasses:
    classes = mock.Mock(spec=ActiveClasses)
    classes.host_rows = np.arange(first, first + 10)
    return classes


def test_rows_are_fetched_into_memory_of_the_copy_stream(staged):
    rows, allocated, recorded = staged
    first, second = active(0), active(5)
    rows.prefetch(first)
    rows.activate(first)
    rows.prefetch(second)
    rows.release(first)
    assert allocated == ["copies"] * 2 and not recorded
    rows.activate_read_only(active(20))
    assert allocated == ["copies"] * 3 and recorded == ["default"]


def test_memory_of_dropped_rows_is_not_fetched_into_while_it_is_read(staged):
    rows, _, _ = staged
    waits = mock.Mock()
    rows._wait_for_readers = waits
    rows.prefetch(active(0))
    rows.activate(active(5))  # another step than was prefetched
    assert waits.call_count == 1
    rows.drop_prefetched()
    assert waits.call_count == 2


def test_the_thread_of_the_rows_uses_the_ranks_gpu(monkeypatch):
    devices = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda it: devices.append((it, threading.current_thread())))
    monkeypatch.setattr(torch.cuda, "Stream", mock.Mock())
    rows = HostStorage({"centers": torch.zeros(4, 2)}, torch.device("cuda:3"))
    assert rows._thread.submit(lambda: 1).result() == 1
    ((device, thread),) = devices
    assert device == torch.device("cuda:3") and thread.name.startswith("rows")


def test_the_thread_that_writes_checkpoints_uses_the_ranks_gpu(monkeypatch):
    devices = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda it: devices.append((it, threading.current_thread().name))
    )
    thread = writer.Writer(mock.Mock(), mock.Mock(device=torch.device("cuda:2")))
    monkeypatch.setattr(thread, "_write", lambda job: devices.append("writes"))
    thread.start(mock.Mock(tensors={}))
    thread.wait()
    assert devices == [(torch.device("cuda:2"), "checkpoint"), "writes"]


THREADS = {  # where a thread begins, and why it needs no device, or where it gets one
    "launching/local_ranks.py": "the launcher computes nothing",
    "launching/rendezvous.py": "the launcher computes nothing",
    "runtime/platform.py": "waits for the exit of the parent",
    "runtime/process/watchdog.py": "bind_thread",
    "runtime/progress.py": "reads and decodes files",
    "runtime/checkpoint/writer.py": "bind_thread",
    "evaluation/embed.py": "decodes images",
    "head/storage/host.py": "bind_thread",
}


def test_every_thread_is_known():
    """A new one is entered above, with what it does on a GPU."""
    found = {}
    for path in (ROOT / "partialfc").rglob("*.py"):
        calls = [it.func for it in ast.walk(ast.parse(path.read_text())) if isinstance(it, ast.Call)]
        names = {getattr(it, "attr", getattr(it, "id", "")) for it in calls}
        if names & {"Thread", "ThreadPoolExecutor", "Timer"}:
            found[str(path.relative_to(ROOT / "partialfc"))] = path.read_text()
    assert found.keys() == THREADS.keys()
    for name, reason in THREADS.items():
        assert (reason == "bind_thread") == ("bind_thread" in found[name]), name


def test_copies_for_a_checkpoint_take_their_exact_size(monkeypatch):
    sizes = []
    monkeypatch.setattr(state_snapshot, "pinned_exactly", lambda shape, dtype: sizes.append((shape, dtype)))
    with fake_cuda(1) as fake, fake:
        state_snapshot._allocate(torch.empty(300_001, 7, device=DEVICE))
        small = state_snapshot._allocate(torch.empty(3, device=DEVICE))
    assert sizes == [((300_001, 7), torch.float32)] and small.shape == (3,)


def test_pinned_memory_is_as_large_as_it_was_asked_for(monkeypatch):
    registered = []
    cudart = mock.Mock(cudaHostRegister=lambda pointer, size, flags: registered.append(size) or 0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    assert host_memory.pinned_exactly((1025, 3), torch.float16).shape == (1025, 3)
    assert registered == [1025 * 3 * 2]


@pytest.mark.parametrize(
    ("limit", "world_size", "soft", "warning"),
    [
        ((1024, 4096), 450, 4096, None),
        ((1024, 1024), 450, None, "open files: expected a limit of 1156 for 450 ranks, got 1024; raise it"),
        ((1024, resource.RLIM_INFINITY), 100_000, 200_256, None),  # macOS refuses an infinite one
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 100_000, None, None),
        ((1024, 1024), 8, None, None),
    ],
)
def test_the_limit_of_open_files_is_raised(monkeypatch, limit, world_size, soft, warning):
    raised = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limit)
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: raised.append(wanted))
    found = limits.allow_files(world_size)
    assert (found or "").startswith(warning or "") and (found is None) == (warning is None)
    assert raised == ([] if soft is None else [(soft, limit[1])])
