"""Functions of the command line, one per command.

Imports are local to the functions, so that help and completion are fast.
"""
