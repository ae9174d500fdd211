"""Limits that the system sets for a process."""

import os
import resource
from collections.abc import Iterator

from partialfc.errors import InputError

_MAX_THREADS = 4096  # more than any machine has CPUs
# Phrases of libraries, in lower case, for a limit that was reached.
_NO_PROCESSES = ("resource temporarily unavailable", "can't start new thread")
_NO_FILES = ("too many open files",)
_OTHER_FILES = 256  # of libraries, packs, workers and logs


def allow_files(world_size: int) -> str | None:
    """Raise the soft limit of open files to the hard limit; return a warning if that is not enough.

    Each of the two full-mesh host groups of a rank holds a socket for every other rank.

    Returns:
        Warning, or None.
    """
    needed = 2 * world_size + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS refuses an infinite soft limit.
    wanted = max(soft, needed) if hard == resource.RLIM_INFINITY else hard
    if soft not in (wanted, resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return None
    return (
        f"open files: expected a limit of {needed} for {world_size} ranks, got {hard}; "
        "raise it with ulimit -Hn, or LimitNOFILE of the service that starts jobs"
    )


def check_thread_count() -> None:
    """Check OMP_NUM_THREADS, of which libraries ignore invalid values, and start any number of threads.

    Raises:
        InputError: If it is invalid.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").strip()
    for number in given.split(",") if given else []:
        if not (number.strip().isdecimal() and 1 <= int(number) <= _MAX_THREADS):
            raise InputError(f"OMP_NUM_THREADS: expected an integer from 1 to {_MAX_THREADS}, got {given}")


def explain_limit(error: BaseException) -> str | None:
    """Return a message about the limit of processes or files that caused an error; None for other errors."""
    for cause in _causes(error):
        text = " ".join(str(cause).split())
        if any(phrase in text.lower() for phrase in _NO_PROCESSES):
            limit = _format_limit(resource.RLIMIT_NPROC)
            return (
                f"{text}; the user may have {limit} processes and threads (ulimit -u), and a container may have "
                "fewer (docker run --pids-limit). Raise the limit, or lower data.num_workers or OMP_NUM_THREADS"
            )
        if any(phrase in text.lower() for phrase in _NO_FILES):
            limit = _format_limit(resource.RLIMIT_NOFILE)
            return f"{text}; a process may open {limit} files. Raise the limit with ulimit -Hn"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _format_limit(kind: int) -> str:
    limit = resource.getrlimit(kind)[0]
    return "any number of" if limit == resource.RLIM_INFINITY else str(limit)
