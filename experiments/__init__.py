"""Experiments of docs/explanation/results.md. Run one with `python -m experiments.NAME` in the folder of the repository."""
