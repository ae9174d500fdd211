"""Section times of all ranks, since every step lasts as long as that of the slowest rank."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from partialfc.runtime import comm
from partialfc.runtime.comm import COMM_SECTION, DistContext

_WORK = ("data", "backbone", "head", "optimizer")  # sections in which a rank does not wait for others
SECTIONS = (*_WORK, COMM_SECTION)
_SLOW = 1.25  # work of a slow rank, relative to the median
_WINDOWS = 3  # consecutive windows after which a slow rank is reported


@dataclass(frozen=True)
class RankTimesReport:
    """Milliseconds per step of all ranks, over the steps up to `step`."""

    step: int
    sections: dict[str, dict[str, float]]  # min, median and max by section
    slowest: int  # rank with the most work
    warning: str  # about a rank that stays slow; empty otherwise


class RankTimes:
    """Exchange of section times between ranks, without waiting. All ranks call it after the same steps.

    Collectives: an all-gather of host names at the construction.
    """

    def __init__(self, dist_ctx: DistContext) -> None:
        self._group = dist_ctx.host_group
        self._hosts = comm.all_gather_object(socket.gethostname(), dist_ctx.host_group)
        self._pending: tuple[int, Tensor, comm.Work] | None = None
        self._slow, self._windows = -1, 0  # slow rank of the latest windows, and their number

    def exchange(self, step: int, num_steps: int, seconds: Mapping[str, float]) -> RankTimesReport | None:
        """Send the times of this rank's steps up to `step`.

        Collectives: an all-gather of a few numbers, which the next call waits for.

        Returns:
            Report of the previous call; None after the first.
        """
        report = self._read()
        mine = [1000 * seconds.get(name, 0.0) / num_steps for name in SECTIONS]
        self._pending = step, *comm.all_gather_async(torch.tensor([mine], dtype=torch.float64), self._group)
        return report

    def _read(self) -> RankTimesReport | None:
        if self._pending is None:
            return None
        step, gathered, work = self._pending
        work.wait()
        columns: list[list[float]] = gathered.T.tolist()
        sections = {
            name: {"min": min(times), "median": median(times), "max": max(times)}
            for name, times in zip(SECTIONS, columns, strict=True)
        }
        busy = [sum(times) for times in zip(*columns[: len(_WORK)], strict=True)]
        slowest = max(range(len(busy)), key=busy.__getitem__)
        return RankTimesReport(step, sections, slowest, self._warn(busy, slowest))

    def _warn(self, busy: list[float], slowest: int) -> str:
        """Return a warning in the window in which a rank has been slow for some time."""
        usual = median(busy)
        slow = slowest if busy[slowest] > _SLOW * usual else -1
        self._windows = self._windows + 1 if slow == self._slow else 1
        self._slow = slow
        if slow < 0 or self._windows != _WINDOWS:
            return ""
        return (
            f"rank {slow} on {self._hosts[slow]} is slow: it works {busy[slow]:.1f} ms in each step, the median of the "
            f"ranks is {usual:.1f} ms"
        )
