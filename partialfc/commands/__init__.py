"""What is called from a shell: `partialfc COMMAND`."""
