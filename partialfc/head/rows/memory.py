"""Where rows live: on the device, in host memory, or in files; and how a step gets those it works on.

Legend: n rows of this rank, S of them active in a step, D components.
"""

import mmap
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from partialfc.head.active import ActiveClasses
from partialfc.head.rows.frozen import FrozenRows
from partialfc.head.scratch import ScratchMemory, on_device
from partialfc.runtime.host_memory import bind_thread, pinned_exactly

Types = Mapping[str, torch.dtype]  # of the tensors, by name
Advise = Callable[[NDArray[np.int64]], None]  # told which rows will be wanted
Move = Callable[..., None]  # as kernels.moving.move_rows


class InPlace:
    """Rows in the memory of the device, worked on where they are."""

    def __init__(self, types: Types, shape: tuple[int, int], device: torch.device) -> None:
        # fill_ touches the memory now: a page's first use would slow the first steps
        self.tensors = {
            name: torch.empty(shape, dtype=dtype, device=device).fill_(0) for name, dtype in types.items()
        }

    def prefetch(self, classes: ActiveClasses) -> None:
        """Nothing to do."""

    def activate(self, classes: ActiveClasses) -> tuple[dict[str, Tensor], Tensor | None]:
        """The tensors [n, D] and which rows of them to work on (None: all)."""
        return self.tensors, classes.rows

    look_at = activate

    def release(self, classes: ActiveClasses) -> None:
        """Nothing to do."""

    def drop(self, classes: ActiveClasses) -> None:
        """Nothing to do."""

    def forget(self) -> None:
        """Nothing to do."""

    def wait_for_writeback(self) -> None:
        """Nothing to do."""

    def before_write(self, rows: NDArray[np.int64]) -> None:
        """Nothing to do."""

    def freeze(self) -> dict[str, FrozenRows]:
        """None: they are copied faster than a device computes a step."""
        return {}


@dataclass
class _Stage:
    """The rows of one step on the device."""

    rows: NDArray[np.int64]  # [S] ascending
    slot: int  # of the two that take turns
    fetched: Future[dict[str, Tensor]]  # [S, D] each


class Staged:
    """Rows in the memory of the host, brought to the device for a step, and back after it, by a thread of their own.

    The thread does one thing after the other. A step that is fetched before the one before it was released
    gets the rows that both work on from the device.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        device: torch.device,
        *,
        advise: Advise | None = None,
        move: Move | None = None,
    ) -> None:
        self.tensors = tensors  # [n, D], on the host
        self._advise, self._move = advise, move
        self._device, self._on_gpu = device, device.type == "cuda"
        self._slots = [ScratchMemory(device), ScratchMemory(device)]
        self._pinned = ScratchMemory(torch.device("cpu"), pinned=True)
        self._copies = torch.cuda.Stream(device) if self._on_gpu else None
        self._stages: deque[_Stage] = deque()
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="rows", initializer=bind_thread, initargs=(device,)
        )
        self._written: Future[None] | None = None  # the latest way back
        self._frozen: list[FrozenRows] = []  # that somebody reads

    def prefetch(self, classes: ActiveClasses) -> None:
        """Start to bring the rows of `classes`; no more than two steps are on their way or active at once."""
        if len(self._stages) < 2:
            self._start(_rows_of(classes))

    def activate(self, classes: ActiveClasses) -> tuple[dict[str, Tensor], None]:
        """Tensors [S, D] on the device, to be worked on in place. Steps that were prefetched before and not used are
        dropped.
        """
        rows = _rows_of(classes)
        if self._stages and self._stages[0].rows is not rows:
            while self._stages and self._stages[0].rows is not rows:
                self._stages.popleft().fetched.result()
            self._wait_for_readers()
        if not self._stages:
            self._start(rows)
        return self._stages[0].fetched.result(), None

    def look_at(self, classes: ActiveClasses) -> tuple[dict[str, Tensor], None]:
        """Tensors [S, D] on the device, to be read only; what is on its way or active stays so."""
        rows = _rows_of(classes)
        for stage in self._stages:
            if stage.rows is rows:
                return stage.fetched.result(), None
        fetched = self._thread.submit(self._fetch, rows, ScratchMemory(self._device)).result()
        if self._on_gpu:  # allocated on the copy stream, used on this one
            for tensor in fetched.values():
                tensor.record_stream(torch.cuda.current_stream(self._device))
        return fetched, None

    def release(self, classes: ActiveClasses) -> None:
        """Write the rows of a step that is done back."""
        stage = self._stages.popleft()
        assert stage.rows is _rows_of(classes)
        for later in self._stages:
            _patch(later, stage)
        done = torch.cuda.current_stream(self._device).record_event() if self._on_gpu else None
        self.wait_for_writeback()
        self._written = self._thread.submit(self._write_back, stage, done)

    def drop(self, classes: ActiveClasses) -> None:
        """Forget the rows of a step that is not taken."""
        self._stages = deque(stage for stage in self._stages if stage.rows is not _rows_of(classes))
        self._wait_for_readers()

    def forget(self) -> None:
        """Drop what was fetched before the tensors were filled anew."""
        while self._stages:
            self._stages.popleft().fetched.result()
        self._wait_for_readers()

    def wait_for_writeback(self) -> None:
        """Return when `tensors` hold what all released steps have made of them."""
        if self._written is not None:
            self._written.result()

    def before_write(self, rows: NDArray[np.int64]) -> None:
        """Keep what readers of frozen tensors have not read yet of these rows, ascending, which are about to be written."""
        for frozen in self._frozen:
            frozen.before_write(rows)

    def freeze(self) -> dict[str, FrozenRows]:
        """The tensors as they are now, by name, to be read while steps go on; each is to be closed."""
        self.wait_for_writeback()
        frozen = {name: FrozenRows(tensor) for name, tensor in self.tensors.items()}
        self._frozen = [it for it in self._frozen if not it.closed] + list(frozen.values())
        return frozen

    def _start(self, rows: NDArray[np.int64]) -> None:
        slot = 1 - self._stages[-1].slot if self._stages else 0
        self._stages.append(_Stage(rows, slot, self._thread.submit(self._fetch, rows, self._slots[slot])))

    def _wait_for_readers(self) -> None:
        """Fetch nothing more until the device has finished what is queued.

        The memory of a dropped step may still be read by a forward, or written by `_patch`.
        """
        if self._on_gpu:
            self._thread.submit(torch.cuda.current_stream(self._device).record_event().synchronize)

    def _fetch(self, rows: NDArray[np.int64], target: ScratchMemory) -> dict[str, Tensor]:
        if self._advise is not None:
            self._advise(rows)
        with self._beside():  # a block of the default stream's pool may still be read by a queued kernel
            fetched = {
                name: target.get(name, (len(rows), whole.shape[1]), whole.dtype)
                for name, whole in self.tensors.items()
            }
        if self._move is not None:
            with self._beside():
                index = on_device(rows, self._device)
                for name, whole in self.tensors.items():
                    self._move(whole, fetched[name], picked=index)
            return fetched
        index = torch.from_numpy(rows)
        for name, whole in self.tensors.items():
            if self._copies is None:
                torch.index_select(whole, 0, index, out=fetched[name])
                continue
            passing = self._pinned.get(name, tuple(fetched[name].shape), whole.dtype)
            torch.index_select(whole, 0, index, out=passing)
            self._copy(fetched[name], passing)
        return fetched

    def _write_back(self, stage: _Stage, done: torch.cuda.Event | None) -> None:
        if done is not None:
            done.synchronize()
        self.before_write(stage.rows)
        if self._move is not None:
            with self._beside():
                index = on_device(stage.rows, self._device)
                for name, rows in stage.fetched.result().items():
                    self._move(rows, self.tensors[name], put=index)
            return
        index = torch.from_numpy(stage.rows)
        for name, rows in stage.fetched.result().items():
            if self._copies is not None:
                passing = self._pinned.get(name, tuple(rows.shape), rows.dtype)
                self._copy(passing, rows)
                rows = passing
            self.tensors[name].index_copy_(0, index, rows)

    def _copy(self, target: Tensor, source: Tensor) -> None:
        with self._beside():
            target.copy_(source, non_blocking=True)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Around what is done beside what the device computes; this thread waits for it, and no other."""
        with nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            yield
        if self._copies is not None:
            self._copies.synchronize()


def _patch(later: _Stage, stage: _Stage) -> None:
    """Rows that both work on: `later` gets what `stage` has made of them."""
    _, there, here = np.intersect1d(later.rows, stage.rows, assume_unique=True, return_indices=True)
    fetched = later.fetched.result()
    for name, rows in stage.fetched.result().items():
        index, target = (on_device(it, rows.device) for it in (here, there))
        fetched[name].index_copy_(0, target, rows.index_select(0, index))


def _rows_of(classes: ActiveClasses) -> NDArray[np.int64]:
    assert classes.host_rows is not None, "a step on all rows has nothing to fetch"
    return classes.host_rows


def in_host_memory(types: Types, shape: tuple[int, int], device: torch.device, move: Move | None) -> Staged:
    """Rows in the host's memory; in memory that a GPU reads and writes by itself where it has a way to `move` them."""
    allocated = pinned_exactly if device.type == "cuda" and move is not None else torch.zeros
    return Staged({name: allocated(shape, dtype=dtype) for name, dtype in types.items()}, device, move=move)


def in_files(types: Types, shape: tuple[int, int], device: torch.device, folder: Path) -> Staged:
    """Rows in files of `folder`, one a tensor, that have no name, and end with the process.

    OSError where the folder cannot be written to, or has no room for all of them.
    """
    files = {name: _File(folder, name, shape, dtype) for name, dtype in types.items()}

    def advise(rows: NDArray[np.int64]) -> None:
        for file in files.values():
            file.will_need(rows)

    return Staged({name: file.tensor for name, file in files.items()}, device, advise=advise)


class _File:
    """A tensor of zeros [n, D] in a file."""

    def __init__(self, folder: Path, name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
        size = max(1, shape[0] * shape[1] * dtype.itemsize)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk shows now, not weeks later
                self._map = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise OSError(
                f"head.folder {folder}: {error.strerror}; wanted {size:,} bytes for {name}{_free(folder)}"
            ) from error
        self._row = shape[1] * dtype.itemsize
        self._map.madvise(mmap.MADV_RANDOM)  # no reading ahead of rows that nobody wants
        bits = torch.frombuffer(self._map, dtype=torch.uint8)
        self.tensor = bits[: shape[0] * self._row].view(dtype).view(shape)

    def will_need(self, rows: NDArray[np.int64]) -> None:
        """Let the system read them all at once instead of one after the other."""
        starts = rows * self._row // mmap.PAGESIZE * mmap.PAGESIZE
        lengths = (rows + 1) * self._row - starts
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            self._map.madvise(mmap.MADV_WILLNEED, start, length)


def _free(folder: Path) -> str:
    """To be added to a message: what there is, where there is such a folder."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return ""
    return f", {status.f_bavail * status.f_frsize:,} bytes free"
