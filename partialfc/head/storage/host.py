"""Rows in host memory; a thread copies the rows of a step to the device and back.

Shapes:
    n: rows of this rank
    S: active classes or rows in a step
    D: components
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.head.buffers import BufferPool, copy_to_device
from partialfc.head.sampling import ActiveClasses
from partialfc.runtime.host_memory import bind_thread, pinned_exactly

DtypeByName = Mapping[str, torch.dtype]
CopyRowsFn = Callable[..., None]  # kernels.triton_rows.copy_rows


class RowSnapshot:
    """Snapshot of a host tensor `[n, D]` for one sequential reader, while steps change the tensor.

    Writers call `before_write`, which copies the rows that were not read yet. The copies take no more memory than the
    steps write during the reading.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.dtype, self.shape = tensor.dtype, tensor.shape
        self.closed = False
        self._lock = threading.Lock()
        self._read_up_to = 0
        self._is_saved = np.zeros(len(tensor), bool)
        self._saved_rows: list[tuple[NDArray[np.int64], Tensor]] = []  # ascending rows, and their values

    def before_write(self, rows: NDArray[np.int64]) -> None:
        """Copy rows `[S]`, ascending, that are about to be overwritten; callable from any thread."""
        with self._lock:
            if self.closed:
                return
            new = rows[np.searchsorted(rows, self._read_up_to) :]
            new = new[~self._is_saved[new]]
            if len(new):
                self._is_saved[new] = True
                self._saved_rows.append((new, self._tensor.index_select(0, torch.from_numpy(new))))

    def read(self, start: int, stop: int) -> Tensor:
        """Return a copy of the rows from `start` to before `stop`; the next call starts at `stop`."""
        with self._lock:
            assert start == self._read_up_to and not self.closed
            self._read_up_to = stop
            rows = self._tensor[start:stop].clone()
            for kept, values in self._saved_rows:
                first, last = np.searchsorted(kept, [start, stop])
                rows[torch.from_numpy(kept[first:last] - start)] = values[first:last]
        return rows

    def close(self) -> None:
        """Release the copies; callable from any thread."""
        with self._lock:
            self.closed = True
            self._saved_rows.clear()


@dataclass(frozen=True)
class _StagedStep:
    """The rows of one step on the device."""

    rows: NDArray[np.int64]  # [S] ascending
    buffer: int  # index of the buffer pool, 0 or 1 in turn
    fetched: Future[dict[str, Tensor]]  # [S, D] each


class HostStorage:
    """Rows in host memory that a thread copies to the device for a step, and back after it.

    The thread runs one task at a time. A step may be fetched before the previous one is released; it then gets the rows
    that both have in common from the device.

    Args:
        tensors: Rows on the host by name, `[n, D]`.
        device: Device of the steps.
        copy: Kernel that reads and writes pinned host memory, or None to copy through pinned buffers.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        device: torch.device,
        copy: CopyRowsFn | None = None,
    ) -> None:
        self.tensors = tensors  # [n, D], on the host
        self._copy_rows = copy
        self._device, self._on_gpu = device, device.type == "cuda"
        self._buffers = [BufferPool(device), BufferPool(device)]
        self._pinned_buffers = BufferPool(torch.device("cpu"), pinned=True)
        self._copy_stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._staged_steps: deque[_StagedStep] = deque()
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="rows", initializer=bind_thread, initargs=(device,)
        )
        self._written: Future[None] | None = None  # latest copy back to the host
        self._snapshots: list[RowSnapshot] = []  # that may still be read

    def prefetch(self, classes: ActiveClasses) -> None:
        """Start to copy the rows of a step, unless two steps are being copied or active."""
        if len(self._staged_steps) < 2:
            self._start(_host_indices(classes))

    def activate(self, classes: ActiveClasses) -> tuple[dict[str, Tensor], None]:
        """Return the rows of a step on the device, `[S, D]`, for updates in place.

        Steps that were prefetched earlier and not activated are dropped.
        """
        rows = _host_indices(classes)
        if self._staged_steps and self._staged_steps[0].rows is not rows:
            while self._staged_steps and self._staged_steps[0].rows is not rows:
                self._staged_steps.popleft().fetched.result()
            self._wait_for_readers()
        if not self._staged_steps:
            self._start(rows)
        return self._staged_steps[0].fetched.result(), None

    def activate_read_only(self, classes: ActiveClasses) -> tuple[dict[str, Tensor], None]:
        """Return the rows of a step on the device, `[S, D]`, for reading; other steps are not affected."""
        rows = _host_indices(classes)
        for stage in self._staged_steps:
            if stage.rows is rows:
                return stage.fetched.result(), None
        fetched = self._thread.submit(self._fetch, rows, BufferPool(self._device)).result()
        if self._on_gpu:  # allocated on the copy stream, used on this stream
            for tensor in fetched.values():
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return fetched, None

    def release(self, classes: ActiveClasses) -> None:
        """Copy the rows of a finished step back to the host."""
        stage = self._staged_steps.popleft()
        assert stage.rows is _host_indices(classes)
        for later in self._staged_steps:
            _copy_shared_rows(later, stage)
        done = torch.cuda.current_stream(self._device).record_event() if self._on_gpu else None
        self.wait_for_writeback()
        self._written = self._thread.submit(self._write_back, stage, done)

    def discard(self, classes: ActiveClasses) -> None:
        """Drop the rows of a step without an update."""
        self._staged_steps = deque(
            stage for stage in self._staged_steps if stage.rows is not _host_indices(classes)
        )
        self._wait_for_readers()

    def drop_prefetched(self) -> None:
        """Drop all fetched rows, since the tensors on the host have changed."""
        while self._staged_steps:
            self._staged_steps.popleft().fetched.result()
        self._wait_for_readers()

    def wait_for_writeback(self) -> None:
        """Wait until `tensors` contain the updates of all released steps."""
        if self._written is not None:
            self._written.result()

    def before_write(self, rows: NDArray[np.int64]) -> None:
        """Let snapshots copy rows `[S]`, ascending, that are about to be overwritten."""
        for snapshot in self._snapshots:
            snapshot.before_write(rows)

    def snapshot(self) -> dict[str, RowSnapshot]:
        """Return snapshots of the tensors by name; the caller closes them."""
        self.wait_for_writeback()
        snapshots = {name: RowSnapshot(tensor) for name, tensor in self.tensors.items()}
        open_snapshots = [snapshot for snapshot in self._snapshots if not snapshot.closed]
        self._snapshots = [*open_snapshots, *snapshots.values()]
        return snapshots

    def _start(self, rows: NDArray[np.int64]) -> None:
        buffer = 1 - self._staged_steps[-1].buffer if self._staged_steps else 0
        self._staged_steps.append(
            _StagedStep(rows, buffer, self._thread.submit(self._fetch, rows, self._buffers[buffer]))
        )

    def _wait_for_readers(self) -> None:
        """Delay later fetches until the device has finished all queued work.

        A forward may still read the memory of a dropped step, and `_copy_shared_rows` may still write to it.
        """
        if self._on_gpu:
            self._thread.submit(torch.cuda.current_stream(self._device).record_event().synchronize)

    def _fetch(self, rows: NDArray[np.int64], target: BufferPool) -> dict[str, Tensor]:
        # A block of the default stream's pool may still be read by a queued kernel.
        with self._on_copy_stream():
            fetched = {
                name: target.get(name, (len(rows), whole.shape[1]), whole.dtype)
                for name, whole in self.tensors.items()
            }
        if self._copy_rows is not None:
            with self._on_copy_stream():
                index = copy_to_device(rows, self._device)
                for name, whole in self.tensors.items():
                    self._copy_rows(whole, fetched[name], picked=index)
            return fetched
        index = torch.from_numpy(rows)
        for name, whole in self.tensors.items():
            if self._copy_stream is None:
                torch.index_select(whole, 0, index, out=fetched[name])
                continue
            pinned = self._pinned_buffers.get(name, tuple(fetched[name].shape), whole.dtype)
            torch.index_select(whole, 0, index, out=pinned)
            self._copy(fetched[name], pinned)
        return fetched

    def _write_back(self, stage: _StagedStep, done: torch.cuda.Event | None) -> None:
        if done is not None:
            done.synchronize()
        self.before_write(stage.rows)
        if self._copy_rows is not None:
            with self._on_copy_stream():
                index = copy_to_device(stage.rows, self._device)
                for name, rows in stage.fetched.result().items():
                    self._copy_rows(rows, self.tensors[name], put=index)
            return
        index = torch.from_numpy(stage.rows)
        for name, rows in stage.fetched.result().items():
            if self._copy_stream is not None:
                pinned = self._pinned_buffers.get(name, tuple(rows.shape), rows.dtype)
                self._copy(pinned, rows)
                rows = pinned
            self.tensors[name].index_copy_(0, index, rows)

    def _copy(self, target: Tensor, source: Tensor) -> None:
        with self._on_copy_stream():
            target.copy_(source, non_blocking=True)

    @contextmanager
    def _on_copy_stream(self) -> Iterator[None]:
        """Run the block on the copy stream; only this thread waits for it."""
        with nullcontext() if self._copy_stream is None else torch.cuda.stream(self._copy_stream):
            yield
        if self._copy_stream is not None:
            self._copy_stream.synchronize()


def _copy_shared_rows(later: _StagedStep, stage: _StagedStep) -> None:
    """Copy the updated rows that both steps have in common to the later step."""
    _, there, here = np.intersect1d(later.rows, stage.rows, assume_unique=True, return_indices=True)
    fetched = later.fetched.result()
    for name, rows in stage.fetched.result().items():
        index, target = (copy_to_device(it, rows.device) for it in (here, there))
        fetched[name].index_copy_(0, target, rows.index_select(0, index))


def _host_indices(classes: ActiveClasses) -> NDArray[np.int64]:
    assert classes.host_rows is not None, "a step on all rows has nothing to fetch"
    return classes.host_rows


def build_host_storage(
    types: DtypeByName, shape: tuple[int, int], device: torch.device, copy: CopyRowsFn | None
) -> HostStorage:
    """Return rows in host memory, which is pinned if a GPU kernel copies them."""
    allocated = pinned_exactly if device.type == "cuda" and copy is not None else torch.zeros
    return HostStorage({name: allocated(shape, dtype=dtype) for name, dtype in types.items()}, device, copy)
