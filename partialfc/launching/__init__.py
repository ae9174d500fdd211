"""Launching and supervision of the ranks of a run, on one machine or as a SLURM job."""
