"""Limits that the system sets for a process."""

import resource

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
