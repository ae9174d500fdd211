"""Tables of scores."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from partialfc.evaluation.sets import Scores

_MAX_ROW_SCORES = 10  # sets with more scores get their own table
_FILE_WIDTH = 240  # characters per line in a file, to avoid wrapping


def print_scores(scores: dict[str, "Scores"]) -> None:
    """Print the scores of all sets, in the width of the terminal."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    for table in _build_tables(scores):
        console.print(table)


def _build_tables(scores: dict[str, "Scores"]) -> Iterator["Table"]:
    """Yield one table for all sets with few scores, and one for each other set."""
    from rich.table import Table

    from partialfc.evaluation.metrics import format_scores
    from partialfc.runtime.text import plain

    shown = {name: format_scores(values) for name, values in scores.items()}
    few = {name: values for name, values in shown.items() if len(values) <= _MAX_ROW_SCORES}
    names = list(dict.fromkeys(it for values in few.values() for it in values))
    if few:
        table = Table("set", box=None)
        for name in names:
            table.add_column(plain(name), justify="right")
        for name, values in few.items():
            table.add_row(plain(name), *(values.get(it, "") for it in names))
        yield table
    for name in [it for it in shown if it not in few]:
        table = Table("score", box=None)
        table.add_column(plain(name), justify="right")
        for score, value in shown[name].items():
            table.add_row(plain(score), value)
        yield table
