"""A bar on stderr for work that takes long."""

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def tracked(items: Iterable[T], what: str, *, shown: bool, total: int | None = None) -> Iterable[T]:
    """The same items, in order; with `shown`, a bar says how many are through of `total`, or of as many as there are."""
    return track(items, what, total=total, console=Console(stderr=True), disable=not shown)
