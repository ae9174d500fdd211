"""Versions of the software in use."""

import hashlib
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import partialfc


def collect_versions(device: torch.device) -> dict[str, str]:
    """Return versions by name; the package's version includes a digest of its code."""
    own = {
        "partialfc": f"{partialfc.__version__} ({_code_digest()})",
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
    return own | ({"CUDA": str(torch.version.cuda), "NCCL": _nccl()} if device.type == "cuda" else {})


def git_revision() -> str:
    """Return the git revision of this code if it is in a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def describe_device(device: torch.device) -> str:
    """Return a human-readable description of a device."""
    if device.type != "cuda":
        return f"cpu with {torch.get_num_threads()} thread(s)"
    known = torch.cuda.get_device_properties(device)
    return f"{known.name}, {known.total_memory / 2**30:.0f} GiB"


def _nccl() -> str:
    version: Callable[[], Any] = torch.cuda.nccl.version
    return ".".join(map(str, version()))


def _code_digest() -> str:
    folder = Path(partialfc.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]
