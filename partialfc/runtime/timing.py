"""What a run takes: the time of its steps, by section, and memory. A GPU's time is measured on the GPU, by events that
nobody waits for.
"""

import resource
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch

Marks = list[
    tuple[str | None, float | torch.cuda.Event]
]  # a section, None: none, and when it owns what follows


class Timeline:
    """The time between marks, each piece owned by the innermost section that is open."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._open: list[str] = []
        self._paused = False
        self._marks: Marks = []

    def enter(self, name: str) -> None:
        """A section begins, maybe inside another."""
        self._open.append(name)
        self._mark()

    def leave(self) -> None:
        """The innermost section ends."""
        self._open.pop()
        self._mark()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Around what is no part of a step: nothing is measured."""
        self._paused = True
        yield
        self._paused = False

    def take_marks(self) -> Marks:
        """What was measured since the last call, between steps, for `seconds_of`."""
        marks, self._marks = self._marks, []
        return marks

    @staticmethod
    def seconds_of(marks: Marks) -> dict[str, float]:
        """Seconds of each section; waits for the device to come to the last of the marks."""
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


# Of the run under way in this process. No argument hands it down: collectives in a backward are called by autograd, on a
# GPU in a thread of its own.
_timeline: Timeline | None = None


@contextmanager
def use_timeline(device: torch.device) -> Iterator[Timeline]:
    """Around the steps whose sections are to be timed; one at a time."""
    global _timeline
    assert _timeline is None
    _timeline = Timeline(device)
    try:
        yield _timeline
    finally:
        _timeline = None


class DeviceProgress:
    """Sections that a GPU has finished, known from events that nobody waits for."""

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
        """Return how many sections the device has finished, and the name of the last one; from one thread."""
        while self._pending and self._pending[0][2].query():
            number, name, _ = self._pending.popleft()
            self._finished = number, name
        return self._finished


_progress: DeviceProgress | None = None  # of the run in this process, where it is followed


@contextmanager
def followed(device: torch.device) -> Iterator[DeviceProgress | None]:
    """Follow within the block which sections a GPU finishes; yield None on a CPU, which finishes what it launches."""
    global _progress
    _progress = DeviceProgress() if device.type == "cuda" else None
    try:
        yield _progress
    finally:
        _progress = None


_sections: list[str] = []  # that are open, whether or not anybody measures


def current_sections() -> str:
    """The sections that are open, outermost first, such as `head, communication`; from any thread."""
    return ", ".join(_sections) or "between sections"


@contextmanager
def section(name: str) -> Iterator[None]:
    """Around a part of a step; costs next to nothing where nobody measures."""
    timeline = _timeline
    _sections.append(name)
    if timeline is not None:
        timeline.enter(name)
    try:
        yield
    finally:
        _sections.pop()
        if timeline is not None:
            timeline.leave()
        if _progress is not None:
            _progress.record(name)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process has taken so far, of a GPU as torch counts it, else of the host's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
