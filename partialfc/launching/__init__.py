"""Starting the ranks of a run on one machine, and watching them; and a run as a SLURM job."""
