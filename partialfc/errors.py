"""Errors that are the user's, not ours."""


class InputError(ValueError):
    """Bad input: a recipe, a file or an argument that cannot be worked with; its message is one line that says so.

    Programs end on it with that line and exit code 2. Any other ValueError is a defect of ours, and keeps its traceback.
    """
