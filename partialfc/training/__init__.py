"""Training run: its state, loop and step, and the replicated parameters."""
