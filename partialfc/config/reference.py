"""Every key of a recipe, as a page: type, unit, bounds, default, and the sentence that stands below it in the source."""

import inspect as python
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import docstring_parser
import msgspec
from msgspec import NODEFAULT, inspect

from partialfc.config import Config
from partialfc.conversion import VARIANT, description, mapping_of
from partialfc.errors import InputError

REQUIRED, UNSET = "required", "unset"  # in the place of a default


@dataclass(frozen=True)
class Key:
    """A key of a section, or of one of its variants."""

    name: str
    values: str  # what it may be, with the unit
    default: str
    sentence: str


@dataclass(frozen=True)
class Section:
    """A section of a recipe, or one of its variants."""

    name: str  # empty: the top level
    variants: tuple[str, ...]  # which have these keys; may be none
    is_default: bool  # of the variants
    sentence: str
    keys: tuple[Key, ...]

    @property
    def title(self) -> str:
        """How it is called in a recipe."""
        if not self.variants:
            return self.name or "Top level"
        default = ", the default" if self.is_default else ""
        return f"{self.name}, name: {' | '.join(self.variants)}{default}"


def sections() -> list[Section]:
    """All of them, in a recipe's order, the top level first; variants with the same keys as one."""
    found: list[Section] = []
    top = inspect.type_info(Config)
    assert isinstance(top, inspect.StructType)
    plain = [field for field in top.fields if not _structs(field.type)]
    found.append(_section("", top, plain, {}, None))
    for field in top.fields:
        for one in _sections(field.encode_name, field):
            before = found[-1]
            if one.variants and (before.name, before.keys) == (one.name, one.keys):
                sentence = f"{before.sentence} {one.sentence}"
                found[-1] = replace(before, variants=before.variants + one.variants, sentence=sentence)
            else:
                found.append(one)
    return found


def _sections(name: str, field: inspect.Field) -> Iterator[Section]:
    """Those that stand at a field, and the sections within them."""
    variants = _structs(field.type)
    shared: dict[str, str] = {}  # what several variants have in common is said at one of them
    for struct in variants:
        shared |= _sentences(struct.cls)
    for struct in variants:
        yield _section(name, struct, list(struct.fields), shared, field)
        for inner in struct.fields:
            yield from _sections(f"{name}.{inner.encode_name}", inner)


def _section(
    name: str,
    struct: inspect.StructType,
    fields: list[inspect.Field],
    shared: dict[str, str],
    place: inspect.Field | None,
) -> Section:
    sentences = shared | _sentences(struct.cls)
    keys = [Key(it.encode_name, _values(it.type), _default(it), sentences.get(it.name, "")) for it in fields]
    return Section(
        name=name,
        variants=(str(struct.tag),) if struct.tag_field == VARIANT else (),
        is_default=place is not None and isinstance(place.default, struct.cls),
        sentence=docstring_parser.parse(python.getdoc(struct.cls) or "").short_description or "",
        keys=tuple(keys),
    )


def _sentences(settings: type[Any]) -> dict[str, str]:
    """By key: the docstrings that stand below the fields, those of its bases included."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        if kind is not msgspec.Struct and issubclass(kind, msgspec.Struct):
            for it in docstring_parser.parse_from_object(kind).params:
                found[it.arg_name] = " ".join((it.description or "").split())
    return found


def _structs(kind: inspect.Type) -> list[inspect.StructType]:
    options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return [it for it in options if isinstance(it, inspect.StructType)]


def _default(field: inspect.Field) -> str:
    if field.default is None:
        return UNSET
    if field.default is not NODEFAULT:
        return _written(field.default)
    return REQUIRED if field.required else _written(field.default_factory())


def _written(value: Any) -> str:
    """As a recipe has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(kind: inspect.Type) -> str:
    """In words."""
    if wanted := description(kind):
        return wanted
    if isinstance(kind, inspect.Metadata):
        unit = (kind.extra_json_schema or {}).get("unit")
        return _values(kind.type) + (f", {unit}" if unit else "")
    if structs := _structs(kind):
        return (
            "section: " + " | ".join(str(it.tag) for it in structs if it.tag) if structs[0].tag else "section"
        )
    if mapping_of(kind) is not None:
        assert isinstance(kind, inspect.UnionType)
        numbers = (_values(it) for it in kind.types if not isinstance(it, inspect.DictType))
        return "; ".join([*numbers, "or such by step or epoch"])
    if isinstance(kind, inspect.UnionType):
        return " or ".join(_values(it) for it in kind.types if not isinstance(it, inspect.NoneType))
    if isinstance(kind, inspect.LiteralType):
        return " | ".join(map(str, kind.values))
    return _plain(kind)


def _plain(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType() | inspect.FloatType():
            return _number(kind)
        case inspect.BoolType():
            return "true | false"
        case inspect.VarTupleType():
            return f"list of {_values(kind.item_type)}"
        case inspect.TupleType():
            return f"list of {len(kind.item_types)}: {_values(kind.item_types[0])}"
        case inspect.DictType():
            return f"keys with {_values(kind.value_type)}"
    return "text"


def _number(kind: inspect.IntType | inspect.FloatType) -> str:
    word = "integer" if isinstance(kind, inspect.IntType) else "number"
    if kind.ge is not None and kind.le is not None:
        return f"{word}, {kind.ge} to {kind.le}"
    limits = {
        "{} or more": kind.ge,
        "above {}": kind.gt,
        "at most {}": kind.le,
        "below {}": kind.lt,
        "a multiple of {}": kind.multiple_of,
    }
    return ", ".join([word, *(text.format(it) for text, it in limits.items() if it is not None)])


def selected(place: str | None) -> list[Section]:
    """The sections of that name, or the one that has that key; None: all. InputError where there is none."""
    everything = sections()
    if place is None:
        return everything
    found = [it for it in everything if it.name == place or it.name.startswith(f"{place}.")]
    name, _, key = place.rpartition(".")
    for it in everything if not found else ():
        keys = tuple(one for one in it.keys if one.name == key)
        if it.name == name and keys:
            found.append(replace(it, keys=keys))
    if not found:
        names = sorted({it.name for it in everything if it.name})
        raise InputError(
            f"settings {place}: wanted a section or a key, such as train.global_batch_size; there are {', '.join(names)}"
        )
    return found


def as_markdown() -> str:
    """The whole as a document."""
    lines = [
        "# Settings",
        "",
        "Every key of a recipe. `partialfc settings [SECTION]` prints this page; any key can be given on the command line, as",
        "`section.key=value`. A section that has variants names one by `name`, and its keys then are that variant's.",
    ]
    for section in sections():
        lines += ["", f"## {section.title}", "", section.sentence, ""]
        lines += ["| key | values | default | |", "|---|---|---|---|"]
        for key in section.keys:
            values = key.values.replace("|", "\\|")
            default = key.default if key.default in (REQUIRED, UNSET) else f"`{key.default}`"
            lines.append(f"| `{key.name}` | {values} | {default} | {key.sentence} |")
    return "\n".join([*lines, ""])
