"""Processes that exit with their launcher, even if it is killed."""

import ctypes
import os
import signal
import sys

LAUNCHER_PID_VARIABLE = "PARTIALFC_LAUNCHER"  # pid of the launcher
_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def has_launcher() -> bool:
    """Return True if a launcher started this process."""
    return LAUNCHER_PID_VARIABLE in os.environ


def exit_with_launcher() -> None:
    """Kill this process by SIGKILL as soon as its launcher exits.

    Does nothing without a launcher, or on a system other than Linux.
    """
    launcher = os.environ.get(LAUNCHER_PID_VARIABLE)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it exited before the call
        os.kill(os.getpid(), signal.SIGKILL)


def silence_resource_tracker() -> None:
    """Suppress the warning of Python's resource tracker, which removes shared memory if this process is killed."""
    said = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{said + ',' if said else ''}ignore:resource_tracker:UserWarning"
