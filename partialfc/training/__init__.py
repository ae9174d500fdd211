"""A run: what it consists of, its loop and its step, and what every rank has a replica of."""
