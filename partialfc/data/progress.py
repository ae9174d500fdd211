"""A bar on stderr for work that takes long."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def tracked(items: Sequence[T], what: str, *, shown: bool) -> Iterable[T]:
    """The same items, in order; with `shown`, a bar says how many are through."""
    return track(items, what, console=Console(stderr=True), disable=not shown)
