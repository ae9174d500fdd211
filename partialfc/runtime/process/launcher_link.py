"""Processes that exit with their launcher, even if it is killed."""

import os

from partialfc.runtime import platform

LAUNCHER_PID_VARIABLE = "PARTIALFC_LAUNCHER"  # pid of the launcher


def has_launcher() -> bool:
    """Return True if a launcher started this process."""
    return LAUNCHER_PID_VARIABLE in os.environ


def exit_with_launcher() -> None:
    """Kill this process by SIGKILL as soon as its launcher, if there is one, exits."""
    if has_launcher():
        platform.exit_with_parent(int(os.environ[LAUNCHER_PID_VARIABLE]))


def silence_resource_tracker() -> None:
    """Suppress the warning of Python's resource tracker, which removes shared memory if this process is killed."""
    said = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{said + ',' if said else ''}ignore:resource_tracker:UserWarning"
