"""Metrics, logs and reports of runs."""
