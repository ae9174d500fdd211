"""Errors caused by the user."""


class InputError(ValueError):
    """Invalid recipe, file or argument; the message is a single line that explains the problem.

    Programs exit with this line and code 2. Any other ValueError is a bug and keeps its traceback.
    """
