"""Names from files are shown as they are, without effect on the terminal."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from partialfc.commands.tables import print_scores
from partialfc.evaluation.sets import Scores
from partialfc.monitoring.terminal import Terminal
from partialfc.runtime.progress import progress_bar
from partialfc.runtime.text import escape_unprintable, plain

NAME = "[bold]lfw[/nothing]\x1b[31m\udcff\u202e"
SHOWN = r"[bold]lfw[/nothing]\x1b[31m\udcff\u202e"


def test_control_characters_are_escaped():
    assert escape_unprintable(NAME) == SHOWN and escape_unprintable("Jürgen 李") == "Jürgen 李"


def test_a_table_shows_a_name_as_it_is():
    table = Table("name", box=None)
    table.add_row(plain(NAME))
    output = io.StringIO()
    Console(file=output, width=100).print(table)
    assert SHOWN in output.getvalue()


@pytest.mark.parametrize("count", [1, 20])  # a row of a table, and a table of its own
def test_scores_of_a_set(capsys, count):
    scores: Scores = {f"score {it}": 0.5 for it in range(count)}
    print_scores({NAME: scores})
    assert SHOWN in capsys.readouterr().out


def test_lines_of_a_run(capsys):
    terminal = Terminal(0, 10)
    terminal.print_line(f"step 1  {NAME}: 95%")
    terminal.close()
    assert capsys.readouterr().out == f"step 1  {SHOWN}: 95%\n"


def test_the_description_of_a_progress_bar_is_no_markup():
    assert list(progress_bar([1, 2], NAME, enabled=True)) == [1, 2]
