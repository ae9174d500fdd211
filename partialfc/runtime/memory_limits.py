"""Memory and shared memory of this machine, for messages about processes that lack it."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")
_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # bytes; cgroups without a limit report more
_MEMORY_SIGNALS = (signal.SIGKILL, signal.SIGBUS)  # sent if memory, or shared memory, runs out


def explain_signal(number: int) -> str:
    """Return the name of a signal that killed a process, and the state of the memory if it may be the cause."""
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number not in _MEMORY_SIGNALS:
        return name
    return f"{name}, probably because memory ran out ({describe_memory()})"


def describe_memory() -> str:
    """Return the memory of the machine, the limit of the cgroup, and the shared memory, as far as they are known."""
    facts = []
    with suppress(OSError, KeyError, ValueError):
        total, available = (_meminfo()[it] for it in ("MemTotal", "MemAvailable"))
        facts.append(f"{_format_size(total - available)} of {_format_size(total)} used now")
    with suppress(OSError, ValueError):
        limits = [it for it in _cgroup_limits() if it[0] < _UNLIMITED]
        if limits:
            limit, used = min(limits)
            facts.append(f"cgroup limit {_format_size(limit)}, {_format_size(used)} used now")
    if (free := free_shared_memory()) is not None:
        facts.append(f"{_format_size(free)} free in {_SHARED_MEMORY}")
    return "; ".join(facts) or "no details on this system"


def free_shared_memory() -> int | None:
    """Return the number of free bytes of shared memory; None if it is not a file system."""
    try:
        return shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        return None


def check_shared_memory(needed: int) -> str | None:
    """Return a message if less than `needed` bytes of shared memory are free."""
    free = free_shared_memory()
    if free is None or free >= needed:
        return None
    return f"{_SHARED_MEMORY}: {_format_size(free)} free; expected {_format_size(needed)}"


def _meminfo() -> dict[str, int]:
    """Return the numbers of bytes in /proc/meminfo, which only Linux has."""
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows}


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """Yield the memory limit of every cgroup that contains this process, and what is used of it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root, files = _CGROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, files = _CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = root / path.lstrip("/")
        for place in [folder, *folder.parents]:
            if not place.is_relative_to(root):
                break
            with suppress(OSError, ValueError):  # "max", or a path of the host
                limit, used = (int((place / name).read_text()) for name in files)
                yield limit, used


def _format_size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 30 else f"{size / 2**20:.1f} MiB"
