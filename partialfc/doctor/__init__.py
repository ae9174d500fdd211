"""Diagnosis of the current machines for a recipe: checks of all that a run needs."""
