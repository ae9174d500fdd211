"""Sweeps: runs over a grid of settings, sequential or split over the tasks of a job array, with a table of results."""
