"""What is called from a shell: `partialfc COMMAND`, and as scripts in tools/."""
