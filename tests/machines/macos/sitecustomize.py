"""Remove from this process what Python has on Linux and not on macOS."""

import mmap
import os
import select
import signal

_LINUX_ONLY = {
    os: (
        "copy_file_range",
        "eventfd",
        "eventfd_read",
        "eventfd_write",
        "fdatasync",
        "getrandom",
        "getresgid",
        "getresuid",
        "getxattr",
        "listxattr",
        "memfd_create",
        "pidfd_open",
        "pipe2",
        "posix_fadvise",
        "posix_fallocate",
        "removexattr",
        "sched_getaffinity",
        "sched_getparam",
        "sched_getscheduler",
        "sched_setaffinity",
        "sched_setparam",
        "sched_setscheduler",
        "setxattr",
        "splice",
        "waitid",
    ),
    mmap: ("MADV_DODUMP", "MADV_DONTDUMP", "MADV_DONTFORK", "MADV_HUGEPAGE", "MADV_REMOVE", "MAP_POPULATE"),
    select: ("epoll",),
    signal: (
        "SIGCLD",
        "SIGPOLL",
        "SIGPWR",
        "SIGRTMAX",
        "SIGRTMIN",
        "SIGSTKFLT",
        "pidfd_send_signal",
        "sigtimedwait",
        "sigwaitinfo",
    ),
}
for _module, _names in _LINUX_ONLY.items():
    for _name in _names:
        if hasattr(_module, _name):  # Python 3.11 has not all of them
            delattr(_module, _name)
