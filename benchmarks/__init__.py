"""Benchmarks. Run one with `python -m benchmarks.NAME` in the folder of the repository."""
