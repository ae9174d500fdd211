"""Processes of a run: signals, launcher, watchdog, and the lock of the output folder."""
