"""Going through many items: on all cores, and with a bar on stderr."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track

_MAX_PENDING = 256  # items that are worked on before they are asked for

T = TypeVar("T")
R = TypeVar("R")


def progress_bar(
    items: Iterable[T], description: str, *, enabled: bool, total: int | None = None
) -> Iterable[T]:
    """The same items, in order; with `enabled`, and on a terminal, a bar says how many are through of `total`, or of as
    many as there are.
    """
    console = Console(stderr=True)
    return track(
        items, description, total=total, console=console, disable=not (enabled and console.is_terminal)
    )


def map_in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """function(item) for each item, in their order, computed by all cores and not far ahead of who asks."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(
        len(os.sched_getaffinity(0))
    ) as pool:  # OpenCV decodes outside the interpreter lock
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _MAX_PENDING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
