"""Text from files, such as names of sets and identities, for terminals."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def escape_unprintable(text: str) -> str:
    """Return the text with control characters, such as those of terminals, and lone surrogates escaped."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def plain(text: str) -> "Text":
    """Return the text for rich, which would otherwise take [words] for markup."""
    from rich.text import Text  # imported late: data workers do not need it

    return Text(escape_unprintable(text))
