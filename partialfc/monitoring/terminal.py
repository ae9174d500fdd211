"""Terminal output of rank 0: plain lines and, on a terminal, a live display below them."""

import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from partialfc.evaluation.metrics import percent
from partialfc.runtime.text import escape_unprintable, plain


class Terminal:
    """Standard output; a live display is added if it is a terminal.

    Args:
        start: Step that the run resumes from.
        total: Number of steps of the run.
    """

    def __init__(self, start: int, total: int) -> None:
        self._step, self._total = start, total
        self._expected_end: float | None = None  # time.monotonic() at the expected end of the run
        self._numbers: Mapping[str, str] = {}  # of the latest record, by column title
        self._scores: dict[str, tuple[str, ...]] = {}  # score, best score and its step of each evaluation set
        self._activity = ""
        self._console = Console(highlight=False)
        self._display = Live(
            console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True
        )
        if self._console.is_terminal:
            self._display.start()

    def close(self) -> None:
        """Stop the display; printed lines remain."""
        self._display.stop()

    def print_line(self, text: str) -> None:
        """Print a line above the display."""
        if self._console.is_terminal:
            self._console.print(plain(text), soft_wrap=True)
        else:
            print(escape_unprintable(text), flush=True)

    def show_step(self, step: int, text: str, columns: Mapping[str, str], seconds_left: float) -> None:
        """Print a log line and update the progress display."""
        self._step, self._numbers, self._expected_end = step, columns, time.monotonic() + seconds_left
        self.print_line(text)

    def show_activity(self, text: str) -> None:
        """Show what runs besides the steps; an empty text shows nothing."""
        self._activity = text

    def show_score(self, name: str, score: float, best: float, best_step: int) -> None:
        """Show the latest and the best primary score of an evaluation set."""
        self._scores[name] = percent(score), percent(best), f"{best_step}"

    def _render(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1))
        left = (
            ""
            if self._expected_end is None
            else str(timedelta(seconds=round(max(0, self._expected_end - time.monotonic()))))
        )
        bar.add_row(f"step {self._step}/{self._total}", ProgressBar(self._total, self._step, width=40), left)
        parts: list[RenderableType] = [bar, *([plain(self._activity)] if self._activity else [])]
        if self._numbers:
            parts.append(_table(list(self._numbers), [tuple(self._numbers.values())]))
        if self._scores:
            rows = [(name, *texts) for name, texts in self._scores.items()]
            parts.append(_table(["set", "score", "best", "at step"], rows))
        return Group(*parts)


def _table(titles: list[str], rows: list[tuple[str, ...]]) -> Table:
    table = Table(*titles, box=None, pad_edge=False, header_style="dim")
    for row in rows:
        table.add_row(*map(plain, row))
    return table
