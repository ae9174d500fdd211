"""Image to pack, from any source."""

from typing import NamedTuple

from partialfc.errors import InputError


class PackItem(NamedTuple):
    """Image to pack."""

    label: int  # class, from 0
    location: str  # human-readable location
    content: str | bytes  # path of the file, or its contents


def parse_label(location: str, text: str | bytes) -> int:
    """Return the class in a text: a non-negative integer that the format can store.

    Raises:
        InputError: If it is not such a number; the message starts with `location`.
    """
    try:
        label = float(text)
        if 0 <= label < 1 << 31 and label.is_integer():
            return int(label)
    except ValueError:
        pass
    shown = text.decode(errors="replace") if isinstance(text, bytes) else text
    raise InputError(f"{location}: label {shown[:40]!r}, expected an integer from 0 to 2^31 - 1")
