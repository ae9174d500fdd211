"""Section timings of steps, and peak memory.

GPU time is measured on the GPU, by events that the host does not wait for.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import torch
from torch.profiler import record_function

from partialfc.runtime import platform

# Section (None: none) and the start of the interval that it owns.
Marks = list[tuple[str | None, float | torch.cuda.Event]]


class Timeline:
    """Time between marks; each interval belongs to the innermost open section."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._open: list[str] = []
        self._paused = False
        self._marks: Marks = []

    def enter(self, name: str) -> None:
        """Open a section, possibly inside another one."""
        self._open.append(name)
        self._mark()

    def leave(self) -> None:
        """Close the innermost section."""
        self._open.pop()
        self._mark()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the block from all measurements."""
        self._paused = True
        yield
        self._paused = False

    def take_marks(self) -> Marks:
        """Return the marks since the last call, taken between steps, for `seconds_of`."""
        marks, self._marks = self._marks, []
        return marks

    @staticmethod
    def seconds_of(marks: Marks) -> dict[str, float]:
        """Return the seconds of each section; waits until the device reaches the last mark."""
        if marks and isinstance(marks[-1][1], torch.cuda.Event):
            marks[-1][1].synchronize()
        seconds: dict[str, float] = {}
        for (owner, begin), (_, end) in pairwise(marks):
            if owner is not None:
                seconds[owner] = seconds.get(owner, 0.0) + _between(begin, end)
        return seconds

    def _mark(self) -> None:
        if self._paused:
            return
        owner = self._open[-1] if self._open else None
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((owner, event))
        else:
            self._marks.append((owner, time.perf_counter()))


def _between(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return begin.elapsed_time(end) / 1000
    assert not isinstance(end, torch.cuda.Event)
    return end - begin


# Timeline of the run in this process. It is no argument since autograd calls the collectives of a backward,
# on a GPU in its own thread.
_timeline: Timeline | None = None


@contextmanager
def use_timeline(device: torch.device) -> Iterator[Timeline]:
    """Time the sections within the block, on one timeline per process."""
    global _timeline
    assert _timeline is None
    _timeline = Timeline(device)
    try:
        yield _timeline
    finally:
        _timeline = None


class DeviceProgress:
    """Sections that a GPU has finished, known from events that the host does not wait for."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, str, torch.cuda.Event]] = deque()
        self._recorded = 0
        self._finished = (0, "the start")

    def record(self, name: str) -> None:
        """Mark the end of a section, which the device reaches later."""
        event = torch.cuda.Event()
        event.record()
        self._recorded += 1
        self._pending.append((self._recorded, name, event))

    def finished(self) -> tuple[int, str]:
        """Return how many sections the device has finished, and the name of the last one.

        Call it from one thread only.
        """
        while self._pending and self._pending[0][2].query():
            number, name, _ = self._pending.popleft()
            self._finished = number, name
        return self._finished


_progress: DeviceProgress | None = None  # of the run in this process, if it is monitored


@contextmanager
def followed(device: torch.device) -> Iterator[DeviceProgress | None]:
    """Monitor which sections a GPU finishes; yield None on a CPU, where a launch is synchronous."""
    global _progress
    _progress = DeviceProgress() if device.type == "cuda" else None
    try:
        yield _progress
    finally:
        _progress = None


_sections: list[str] = []  # open sections, whether or not they are timed
_annotates = False  # whether a profiler sees the sections


def annotate_sections(*, enabled: bool) -> None:
    """Let the traces of torch.profiler name the sections, or not."""
    global _annotates
    _annotates = enabled


def current_sections() -> str:
    """Return the open sections, outermost first, such as `head, communication`; callable from any thread."""
    return ", ".join(_sections) or "between sections"


@contextmanager
def section(name: str) -> Iterator[None]:
    """Mark a part of a step; costs almost nothing without a timeline."""
    timeline = _timeline
    _sections.append(name)
    if timeline is not None:
        timeline.enter(name)
    try:
        with record_function(name) if _annotates else nullcontext():
            yield
    finally:
        _sections.pop()
        if timeline is not None:
            timeline.leave()
        if _progress is not None:
            _progress.record(name)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: GPU memory as counted by torch, or host memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return platform.peak_memory()
