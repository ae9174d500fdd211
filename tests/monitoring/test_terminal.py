"""Lines where the output is a file, a display below them where it is a terminal."""

import os
import pty
import re
import subprocess
import sys

from partialfc.monitoring.terminal import Terminal

SCRIPT = """
from partialfc.monitoring.terminal import Terminal
terminal = Terminal(0, 40)
terminal.print_line("first [bold]line")
terminal.show_step(10, "step 10/40 as a line", {"loss": "3.25", "rate": "0.1"}, 60.0)
terminal.show_step(20, "step 20/40 as a line", {"loss": "3.25", "rate": "0.1"}, 30.0)
terminal.show_score("lfw", 0.955, 0.97, 5)
terminal.print_line("last line")
terminal.close()
"""


def test_a_file_gets_every_line(capsys):
    terminal = Terminal(0, 40)
    terminal.print_line("a [bold]line")
    terminal.show_step(10, "step 10/40", {"loss": "3.25"}, 60.0)
    terminal.show_score("lfw", 0.955, 0.97, 5)
    terminal.close()
    assert capsys.readouterr().out == "a [bold]line\nstep 10/40\n"


def on_a_terminal() -> str:
    """What SCRIPT writes to one of 100 columns."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color"}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=theirs, stderr=theirs, env=environment
    ) as run:
        os.close(theirs)
        parts = []
        try:
            while part := os.read(ours, 65536):
                parts.append(part)
        except OSError:  # what Linux says at the end of a terminal
            pass
        assert run.wait(60) == 0
    os.close(ours)
    return b"".join(parts).decode()


def test_a_terminal_gets_a_display_below_the_lines_that_stay():
    written = on_a_terminal()
    assert all(
        line in written for line in ("first [bold]line", "step 10/40 as", "step 20/40 as", "last line")
    )
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert re.search(r"step 20/40 .* 0:00:\d\d", shown) and "3.25" in shown
    assert re.search(r"lfw +95.50% +97.00% +5", shown)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back
