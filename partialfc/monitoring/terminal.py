"""What the first rank prints: plain lines, and on a terminal a display that stays below them."""

import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from partialfc.evaluation.metrics import percent


class Terminal:
    """Standard output. Where that is a file or a pipe, every line is printed, and there is no display.

    start, total: the steps that a run goes on from, and has.
    """

    def __init__(self, start: int, total: int) -> None:
        self._step, self._total = start, total
        self._expected_end: float | None = None  # when the run will, by the clock
        self._numbers: Mapping[str, str] = {}  # of the newest step, by their titles
        self._scores: dict[str, tuple[str, ...]] = {}  # of each verification set
        self._aside = ""
        self._console = Console(highlight=False)
        self._display = Live(
            console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True
        )
        if self._console.is_terminal:
            self._display.start()

    def close(self) -> None:
        """The display goes; the lines stay."""
        self._display.stop()

    def print_line(self, text: str) -> None:
        """A line that stays."""
        if self._console.is_terminal:
            self._console.print(text, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def show_step(self, step: int, text: str, columns: Mapping[str, str], seconds_left: float) -> None:
        """How far it is: a line, and the display's numbers."""
        self._step, self._numbers, self._expected_end = step, columns, time.monotonic() + seconds_left
        self.print_line(text)

    def doing(self, text: str) -> None:
        """What is under way beside the steps; nothing if empty."""
        self._aside = text

    def show_score(self, name: str, score: float, best: float, best_step: int) -> None:
        """The newest headline score of an evaluation set, and the best so far."""
        self._scores[name] = percent(score), percent(best), f"{best_step}"

    def _render(self) -> RenderableType:
        bar = Table.grid(padding=(0, 1))
        left = (
            ""
            if self._expected_end is None
            else str(timedelta(seconds=round(max(0, self._expected_end - time.monotonic()))))
        )
        bar.add_row(f"step {self._step}/{self._total}", ProgressBar(self._total, self._step, width=40), left)
        parts: list[RenderableType] = [bar, *([self._aside] if self._aside else [])]
        if self._numbers:
            parts.append(_table(list(self._numbers), [tuple(self._numbers.values())]))
        if self._scores:
            rows = [(name, *texts) for name, texts in self._scores.items()]
            parts.append(_table(["set", "accuracy", "best", "at step"], rows))
        return Group(*parts)


def _table(titles: list[str], rows: list[tuple[str, ...]]) -> Table:
    table = Table(*titles, box=None, pad_edge=False, header_style="dim")
    for row in rows:
        table.add_row(*row)
    return table
