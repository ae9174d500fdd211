"""An image that is to be packed, and its class, wherever they come from."""

from typing import NamedTuple

from partialfc.errors import InputError


class PackItem(NamedTuple):
    """An image that is to be packed."""

    label: int  # its class, from 0
    location: str  # where it is, for people
    content: str | bytes  # the file's path, or the file


def parse_label(location: str, text: str | bytes) -> int:
    """The class that a text stands for: from 0 on, and small enough for the format. InputError at `location` where it is none."""
    try:
        label = float(text)
        if 0 <= label < 1 << 31 and label.is_integer():
            return int(label)
    except ValueError:
        pass
    shown = text.decode(errors="replace") if isinstance(text, bytes) else text
    raise InputError(f"{location}: label {shown[:40]!r}, wanted an integer from 0 to 2^31 - 1")
