"""Processes that end with the one that started them, even where that is killed."""

import ctypes
import os
import signal
import sys

LAUNCHER_PID_VARIABLE = "PARTIALFC_LAUNCHER"  # the process to end with: its pid
_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def has_launcher() -> bool:
    """Whether a launcher started this process."""
    return LAUNCHER_PID_VARIABLE in os.environ


def exit_with_launcher() -> None:
    """End this process by SIGKILL as soon as the launcher that started it has ended; nothing without a launcher, or on
    another system than Linux.
    """
    launcher = os.environ.get(LAUNCHER_PID_VARIABLE)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def silence_resource_tracker() -> None:
    """Where this process is killed, Python's tracker removes what its helpers have shared; that it did needs no warning."""
    said = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{said + ',' if said else ''}ignore:resource_tracker:UserWarning"
