"""Exclusive use of an output folder, held by rank 0 and verified by the other ranks."""

import fcntl
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from partialfc.errors import InputError
from partialfc.runtime import comm
from partialfc.runtime.comm import DistContext
from partialfc.runtime.files import name_os_errors

_NAME = ".lock"


@contextmanager
def lock_output_folder(folder: Path, dist_ctx: DistContext) -> Iterator[None]:
    """Lock `folder`, which is created if missing, for the duration of a run.

    Raises:
        CollectiveInputError: If another run uses it, or if not every rank sees the folder of rank 0.
    """
    token = comm.broadcast_object(uuid.uuid4().hex, dist_ctx.host_group)
    lock = None
    try:
        with comm.raise_on_all_ranks(dist_ctx):
            if dist_ctx.is_main:
                lock = _lock(folder, token)
        with comm.raise_on_all_ranks(dist_ctx):
            _require_shared_folder(folder, token, dist_ctx)
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, token: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").partition("\n")[0]
        os.close(descriptor)
        raise InputError(
            f"{folder}: {holder or 'another run'} is using it; choose another `output`, or wait for that run to end"
        ) from None
    except OSError as error:  # a file system without locks
        os.close(descriptor)
        raise InputError(f"{folder}: {error.strerror}; expected a file system with file locks") from None
    with name_os_errors(folder / _NAME):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n{token}\n".encode(), 0)
        os.fsync(descriptor)
    return descriptor


def _require_shared_folder(folder: Path, token: str, dist_ctx: DistContext) -> None:
    path = folder / _NAME
    found = path.read_text(errors="replace") if path.exists() else ""
    if token not in found:
        raise InputError(
            f"{folder}: rank {dist_ctx.rank} on {socket.gethostname()} does not see the files of rank 0; "
            "expected a folder on a shared file system"
        )
