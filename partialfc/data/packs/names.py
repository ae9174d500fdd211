"""Names of a pack's identities: a small file next to `property`, carried from pack to pack."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from partialfc.errors import InputError
from partialfc.input_files import require_file
from partialfc.runtime.files import atomic_write

NAMES = "identities.tsv"  # lines of a label, a tab and a name; other readers of packs ignore it

_ESCAPED = (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"))


def read_names(folder: Path) -> dict[int, str]:
    """Return the name of each class that has one; empty if the pack has no names.

    Raises:
        InputError: If a line is damaged.
    """
    path = folder / NAMES
    if not path.exists():
        return {}
    require_file(path)
    names = {}
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            label, tab, name = line.rstrip("\n").partition("\t")
            if not tab or not label.isdecimal() or len(label) > 10:
                raise InputError(
                    f"{path}: line {number}: expected a label, a tab and a name, got {line.rstrip()[:40]!r}"
                )
            names[int(label)] = _unescaped(name)
    return names


def write_names(folder: Path, names: Mapping[int, str]) -> None:
    """Write the names of a pack's classes; no file without names."""
    if not names:
        (folder / NAMES).unlink(missing_ok=True)
        return
    lines = "".join(f"{label}\t{_escaped(names[label])}\n" for label in sorted(names))
    with atomic_write(folder / NAMES) as temporary:
        temporary.write_bytes(lines.encode(errors="surrogateescape"))


def folders_of(names: Mapping[int, str], num_classes: int) -> list[str]:
    """Return a unique folder name for each class: its name, or its number if the name is not usable.

    A name is used if it belongs to one class only, equals no number of another class, and contains no path.
    """
    digits = len(str(num_classes - 1))
    usable = _usable(names)
    if any(label not in usable for label in range(num_classes)):  # a number may be another class's name
        usable = {label: it for label, it in usable.items() if not (it.isdecimal() and len(it) == digits)}
    return [usable.get(label, f"{label:0{digits}d}") for label in range(num_classes)]


def _usable(names: Mapping[int, str]) -> dict[int, str]:
    times = Counter(names.values())
    return {
        label: name
        for label, name in names.items()
        if name
        and times[name] == 1
        and name == Path(name).name
        and not name.startswith(".")
        and "\0" not in name
    }


def _escaped(name: str) -> str:
    for plain, escaped in _ESCAPED:
        name = name.replace(plain, escaped)
    return name


def _unescaped(name: str) -> str:
    known = {escaped[1]: plain for plain, escaped in _ESCAPED}
    parts = iter(name.split("\\"))
    found = next(parts)
    for part in parts:
        if part:
            found += known.get(part[0], part[0]) + part[1:]
        else:  # an escaped backslash
            found += "\\" + next(parts, "")
    return found
