"""Going through many items: on all cores, and with a bar on stderr."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track

_AHEAD = 256  # items that are worked on before they are asked for

T = TypeVar("T")
R = TypeVar("R")


def tracked(items: Iterable[T], what: str, *, shown: bool, total: int | None = None) -> Iterable[T]:
    """The same items, in order; with `shown`, and on a terminal, a bar says how many are through of `total`, or of as
    many as there are.
    """
    console = Console(stderr=True)
    return track(items, what, total=total, console=console, disable=not (shown and console.is_terminal))


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """function(item) for each item, in their order, computed by all cores and not far ahead of who asks."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(
        len(os.sched_getaffinity(0))
    ) as pool:  # OpenCV decodes outside the interpreter lock
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
