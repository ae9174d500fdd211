"""Functions of the system that differ between Linux and macOS. Other modules use only common ones."""

import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)
_SIOCGIFADDR = 0x8915  # of Linux's netdevice(7): the address of an interface
_POLL_INTERVAL = 1  # seconds

# Environment of processes that keep freed memory. Otherwise glibc maps memory for every temporary array of 128 KiB, and
# the kernel zeros its pages, which takes a third of the time of sampling. glibc accepts thresholds up to 32 MiB.
MALLOC_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}


def cpu_count() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def installed_gpus() -> int:
    """Return the number of NVIDIA GPUs of this machine; 0 if it is unknown."""
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def network_interface(address: str | None) -> str | None:
    """Return the name of the interface with an IPv4 address of this machine; None on macOS."""
    if address is None or sys.platform != "linux":
        return None
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def anonymous_file(name: str) -> int:
    """Return the descriptor of a file without a path; in memory on Linux."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile(prefix=name) as file:
        return os.dup(file.fileno())


def allocate_file(path: Path) -> None:
    """Reserve disk space for all bytes of an existing file; does nothing on macOS.

    Otherwise a write to a mapped file on a full disk kills the process.

    Raises:
        OSError: If the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None


def peak_memory() -> int:
    """Return the largest number of bytes of memory that this process has used."""
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def exit_with_parent(parent: int) -> None:
    """Kill this process by SIGKILL as soon as its parent exits: immediately on Linux, within a second on macOS."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it exited before the call
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_wait_for_exit, args=(parent,), daemon=True).start()


def _wait_for_exit(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_INTERVAL)
    os.kill(os.getpid(), signal.SIGKILL)
