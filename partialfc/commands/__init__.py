"""What is called from a shell: a function of each command. They import what they need when they are called: help and
completion answer at once.
"""
