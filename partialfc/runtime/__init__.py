"""Process-level services: collectives, checkpoints, random numbers, timing, signals."""
