"""Memory of a benchmark's process."""

from pathlib import Path

import torch


class ProcessMemory:
    """Memory of this process, from now on."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        if self._cuda:
            torch.cuda.init()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak of resident memory
        self._idle, self._files = status_bytes("VmRSS"), status_bytes("RssFile") + status_bytes("RssShmem")

    def peak(self) -> int:
        """Return the peak bytes of the device, beyond those of an idle process."""
        return torch.cuda.max_memory_allocated() if self._cuda else status_bytes("VmHWM") - self._idle

    def file_backed(self) -> int:
        """Return the resident bytes of mapped files, which the system can evict."""
        return status_bytes("RssFile") + status_bytes("RssShmem") - self._files


def status_bytes(name: str) -> int:
    """Return the bytes of a line of /proc/self/status."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))
