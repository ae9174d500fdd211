"""Iteration over many items, on all cores and with a progress bar on stderr."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import track

from partialfc.runtime.platform import cpu_count
from partialfc.runtime.text import escape_unprintable

_MAX_PENDING = 256  # maximum number of items computed ahead of the consumer

T = TypeVar("T")
R = TypeVar("R")


def progress_bar(
    items: Iterable[T], description: str, *, enabled: bool, total: int | None = None
) -> Iterable[T]:
    """Yield the items in order; on a terminal, and if `enabled`, show a progress bar.

    `total` defaults to the number of items.

    Returns:
        Iterable of the items.
    """
    console = Console(stderr=True)
    shown = escape(escape_unprintable(description))
    return track(items, shown, total=total, console=console, disable=not (enabled and console.is_terminal))


def map_in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield function(item) for each item in order, computed on all cores with bounded lookahead."""
    waiting: deque[Future[R]] = deque()
    # OpenCV decodes outside the interpreter lock.
    with ThreadPoolExecutor(cpu_count()) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _MAX_PENDING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
