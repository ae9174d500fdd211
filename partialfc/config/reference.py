"""Reference of all recipe keys: type, unit, bounds, default, and the docstring in the source."""

import inspect as python
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import docstring_parser
import msgspec
from msgspec import NODEFAULT, inspect

from partialfc.config import Config
from partialfc.conversion import VARIANT, describe_type, find_mapping_type
from partialfc.errors import InputError

REQUIRED, UNSET = "required", "unset"  # shown instead of a default
# Keys that most recipes set, in the order of a recipe; the page of the settings starts with them.
COMMON_KEYS = (
    "output",
    "seed",
    "data.path",
    "data.num_workers",
    "augment.flip",
    "backbone.name",
    "backbone.embedding_size",
    "head.sample_rate",
    "head.centers_dtype",
    "head.optim_state_dtype",
    "loss.name",
    "loss.scale",
    "loss.margin",
    "optim.name",
    "optim.lr",
    "optim.weight_decay",
    "optim.precision",
    "schedule.name",
    "schedule.warmup",
    "train.length",
    "train.global_batch_size",
    "train.micro_batch_size",
    "evaluation.every",
    "checkpoint.every",
    "init.backbone",
)


@dataclass(frozen=True)
class KeyDoc:
    """Documentation of a key of a section or variant."""

    name: str
    allowed: str  # allowed values, with the unit
    default: str
    description: str


@dataclass(frozen=True)
class SectionDoc:
    """Documentation of a section, or of one of its variants."""

    name: str  # empty: top level
    variants: tuple[str, ...]  # variants with these keys; may be empty
    is_default: bool  # of the variants
    description: str
    keys: tuple[KeyDoc, ...]

    @property
    def title(self) -> str:
        """Heading of the section."""
        if not self.variants:
            return self.name or "Top level"
        default = ", the default" if self.is_default else ""
        return f"{self.name}, name: {' | '.join(self.variants)}{default}"


def document_sections() -> list[SectionDoc]:
    """Return the documentation of all sections, top level first, in the order of a recipe.

    Variants with the same keys are one entry.
    """
    found: list[SectionDoc] = []
    top = inspect.type_info(Config)
    assert isinstance(top, inspect.StructType)
    plain = [field for field in top.fields if not _struct_types(field.type)]
    found.append(_build_section("", top, plain, {}, None))
    for field in top.fields:
        for one in _iter_sections(field.encode_name, field):
            before = found[-1]
            if one.variants and (before.name, before.keys) == (one.name, one.keys):
                sentence = f"{before.description} {one.description}"
                found[-1] = replace(before, variants=before.variants + one.variants, description=sentence)
            else:
                found.append(one)
    return found


def _iter_sections(name: str, field: inspect.Field) -> Iterator[SectionDoc]:
    """Yield the sections of a field, and the sections within them."""
    variants = _struct_types(field.type)
    shared: dict[str, str] = {}  # keys that several variants share are documented at one of them
    for struct in variants:
        shared |= _field_docstrings(struct.cls)
    for struct in variants:
        yield _build_section(name, struct, list(struct.fields), shared, field)
        for inner in struct.fields:
            yield from _iter_sections(f"{name}.{inner.encode_name}", inner)


def _build_section(
    name: str,
    struct: inspect.StructType,
    fields: list[inspect.Field],
    shared: dict[str, str],
    default_field: inspect.Field | None,
) -> SectionDoc:
    sentences = shared | _field_docstrings(struct.cls)
    keys = [
        KeyDoc(it.encode_name, _format_type(it.type), _format_default(it), sentences.get(it.name, ""))
        for it in fields
    ]
    return SectionDoc(
        name=name,
        variants=(str(struct.tag),) if struct.tag_field == VARIANT else (),
        is_default=default_field is not None and isinstance(default_field.default, struct.cls),
        description=docstring_parser.parse(python.getdoc(struct.cls) or "").short_description or "",
        keys=tuple(keys),
    )


def _field_docstrings(settings: type[Any]) -> dict[str, str]:
    """Return the docstrings below the fields of a class, including its bases, by key."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        if kind is not msgspec.Struct and issubclass(kind, msgspec.Struct):
            for it in docstring_parser.parse_from_object(kind).params:
                found[it.arg_name] = " ".join((it.description or "").split())
    return found


def _struct_types(type_: inspect.Type) -> list[inspect.StructType]:
    options = type_.types if isinstance(type_, inspect.UnionType) else (type_,)
    return [it for it in options if isinstance(it, inspect.StructType)]


def _format_default(field: inspect.Field) -> str:
    if field.default is None:
        return UNSET
    if field.default is not NODEFAULT:
        return _format_value(field.default)
    return REQUIRED if field.required else _format_value(field.default_factory())


def _format_value(value: Any) -> str:
    """Return a value in the syntax of a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_format_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _format_type(type_: inspect.Type) -> str:
    """Return a description of a type."""
    if expected := describe_type(type_):
        return expected
    if isinstance(type_, inspect.Metadata):
        unit = (type_.extra_json_schema or {}).get("unit")
        return _format_type(type_.type) + (f", {unit}" if unit else "")
    if structs := _struct_types(type_):
        return (
            "section: " + " | ".join(str(it.tag) for it in structs if it.tag) if structs[0].tag else "section"
        )
    if find_mapping_type(type_) is not None:
        assert isinstance(type_, inspect.UnionType)
        numbers = (_format_type(it) for it in type_.types if not isinstance(it, inspect.DictType))
        return "; ".join([*numbers, "or such by step or epoch"])
    if isinstance(type_, inspect.UnionType):
        return " or ".join(_format_type(it) for it in type_.types if not isinstance(it, inspect.NoneType))
    if isinstance(type_, inspect.LiteralType):
        return " | ".join(map(str, type_.values))
    return _format_plain_type(type_)


def _format_plain_type(type_: inspect.Type) -> str:
    match type_:
        case inspect.IntType() | inspect.FloatType():
            return _format_number_type(type_)
        case inspect.BoolType():
            return "true | false"
        case inspect.VarTupleType():
            return f"list of {_format_type(type_.item_type)}"
        case inspect.TupleType():
            return f"list of {len(type_.item_types)}: {_format_type(type_.item_types[0])}"
        case inspect.DictType():
            return f"keys with {_format_type(type_.value_type)}"
    return "text"


def _format_number_type(type_: inspect.IntType | inspect.FloatType) -> str:
    word = "integer" if isinstance(type_, inspect.IntType) else "number"
    if type_.ge is not None and type_.le is not None:
        return f"{word}, {type_.ge} to {type_.le}"
    limits = {
        "{} or more": type_.ge,
        "above {}": type_.gt,
        "at most {}": type_.le,
        "below {}": type_.lt,
        "a multiple of {}": type_.multiple_of,
    }
    return ", ".join([word, *(text.format(it) for text, it in limits.items() if it is not None)])


def select_sections(query: str | None) -> list[SectionDoc]:
    """Return the sections of that name, or the one with that key; None: all.

    Raises:
        InputError: If nothing is found.
    """
    everything = document_sections()
    if query is None:
        return everything
    found = [it for it in everything if it.name == query or it.name.startswith(f"{query}.")]
    name, _, key = query.rpartition(".")
    for it in everything if not found else ():
        keys = tuple(one for one in it.keys if one.name == key)
        if it.name == name and keys:
            found.append(replace(it, keys=keys))
    if not found:
        names = sorted({it.name for it in everything if it.name})
        raise InputError(
            f"settings {query}: expected a section or a key, such as train.global_batch_size; there are {', '.join(names)}"
        )
    return found


def _find_common_key(name: str) -> KeyDoc:
    """Return the documentation of a key, of the default variant if variants have different ones."""
    section_name, _, key_name = name.rpartition(".")
    sections = [it for it in document_sections() if it.name == section_name]
    sections.sort(key=lambda section: not section.is_default)
    if key_name == VARIANT:
        default = sections[0].variants[0] if sections[0].is_default else REQUIRED
        variants = " | ".join(variant for section in sections for variant in section.variants)
        return KeyDoc(name, variants, default, f"Variant of `{section_name}`, which has the other keys.")
    found = next(key for section in sections for key in section.keys if key.name == key_name)
    return replace(found, name=name)


def to_markdown() -> str:
    """Return the whole reference as Markdown."""
    lines = [
        "# Settings",
        "",
        "Every key of a recipe. `partialfc settings [SECTION]` prints this page; any key can be given on the command line, as",
        "`section.key=value`. A section that has variants names one by `name`, and its keys then are that variant's.",
        "",
        "## Common keys",
        "",
        *_format_table([_find_common_key(name) for name in COMMON_KEYS]),
    ]
    for section in document_sections():
        lines += ["", f"## {section.title}", "", section.description, "", *_format_table(section.keys)]
    return "\n".join([*lines, ""])


def _format_table(keys: Sequence[KeyDoc]) -> list[str]:
    lines = ["| key | values | default | |", "|---|---|---|---|"]
    for key in keys:
        values = key.allowed.replace("|", "\\|")
        default = key.default if key.default in (REQUIRED, UNSET) else f"`{key.default}`"
        lines.append(f"| `{key.name}` | {values} | {default} | {key.description} |")
    return lines
