"""How much memory a benchmark's process takes."""

from pathlib import Path

import torch


class ProcessMemory:
    """The memory of this process, from now on."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        if self._cuda:
            torch.cuda.init()
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="ascii"
        )  # the peak of resident memory starts anew
        self._idle, self._files = status_bytes("VmRSS"), status_bytes("RssFile") + status_bytes("RssShmem")

    def peak(self) -> int:
        """Bytes of the device at most, beyond what an idle process has."""
        return torch.cuda.max_memory_allocated() if self._cuda else status_bytes("VmHWM") - self._idle

    def file_backed(self) -> int:
        """Bytes of mapped files that are in memory now; the system takes them back when it needs to."""
        return status_bytes("RssFile") + status_bytes("RssShmem") - self._files


def status_bytes(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))
