"""What was parsed as a msgspec struct, or one line that says what is wrong."""

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from partialfc.errors import InputError
from partialfc.key_hints import KEYS, NAMES
from partialfc.renamed import renamed_key, renamed_value

_WRONG_KEY = "key` in `"  # of msgspec's messages
VARIANT = "name"  # the key that says which variant of a section is meant


def converted(tree: Any, kind: Any, place: str) -> Any:
    """What was parsed as the struct `kind`, or one of a union; an InputError says in one line what is wrong at `place`."""
    for leaf, value in _checked_leaves(tree, place):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{place}: {leaf}: {value} is not a finite number")
        if isinstance(value, str) and not _encodable(value):
            raise InputError(
                f"{place}: {leaf}: {shown(value)}; expected text without zero bytes or surrogates"
            )
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        if type(error.__cause__) is InputError:  # a struct's own check, which names its keys
            raise InputError(f"{place}: {error.__cause__}") from error
        raise InputError(f"{place}: {_explained(str(error), tree, kind)}") from error


def _encodable(text: str) -> bool:
    """Return True if text may be part of a path: no zero bytes, no lone surrogates."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _checked_leaves(tree: Any, place: str) -> list[tuple[str, Any]]:
    try:
        return list(_leaves(tree))
    except RecursionError:
        raise InputError(f"{place}: nested too deeply") from None


def _leaves(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(child, f"{place}.{key}" if place else str(key))
    else:
        yield place, node


def _explained(message: str, tree: Any, kind: Any) -> str:
    """A message of msgspec, with the key first, what was found there, and what is allowed."""
    problem, _, where = message.partition(" - at `")
    wrong_key, where = where.startswith(_WRONG_KEY), where.removeprefix(_WRONG_KEY)
    path = re.sub(r"\[(\d+)\]", r".\1", where.rstrip("`").removeprefix("$").removeprefix("."))
    path = path.partition("[...]")[0]  # of a mapping that is no section
    keys = path.split(".") if path else []
    if unknown := re.search(r"unknown field `(.*)`", problem):
        return _unknown(keys, unknown[1], tree, inspect.type_info(kind))
    found = _value(tree, keys)
    if old := renamed_value(_recipe_key(keys), found):
        return old
    if allowed := sorted(_choices(inspect.type_info(kind), keys)):
        meant = [NAMES[str(found)]] if NAMES.get(str(found)) in allowed else []
        nearest = _suggestion(meant or difflib.get_close_matches(str(found), allowed, 1))
        return f"{path}: {shown(found)}, wanted one of {', '.join(allowed)}{nearest}"
    if wanted := _wanted(_at(inspect.type_info(kind), keys), wrong_key=wrong_key, found=found):
        return f"{path}: {shown(found)}, wanted {wanted}"
    problem = problem[0].lower() + problem[1:].replace("`", "")
    return f"{path or 'recipe'}: {problem}; found {shown(found)}"


def _wanted(kind: inspect.Type, *, wrong_key: bool, found: Any) -> str | None:
    mapping = mapping_of(kind)
    if mapping is None:
        return description(kind)
    if wrong_key:
        return f"as a key {description(mapping.key_type)}"
    return None if isinstance(found, float | int | dict) else "a number, or numbers by step or epoch"


def mapping_of(kind: inspect.Type) -> inspect.DictType | None:
    """Of a type that may be a mapping with keys that are described, beside others: the mapping."""
    options = kind.types if isinstance(kind, inspect.UnionType) else ()
    mappings = [it for it in options if isinstance(it, inspect.DictType)]
    return next((it for it in mappings if description(it.key_type)), None)


def description(kind: inspect.Type) -> str | None:
    """What is wanted of a value of this type, where its Meta says so in words."""
    options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    schemas = [it.extra_json_schema for it in options if isinstance(it, inspect.Metadata)]
    return next((str(it["description"]) for it in schemas if it and "description" in it), None)


def _unknown(keys: list[str], name: str, tree: Any, kind: inspect.Type) -> str:
    """Says which keys the section has, and what was meant: in other trainers' words, else the nearest key there, else of that
    name elsewhere, else alike elsewhere.
    """
    section = _value(tree, [*keys, name])
    first_key = str(next(iter(section), "")) if isinstance(section, dict) else None
    if old := renamed_key(_recipe_key([*keys, name]), first_key):
        return old
    structs = _structs(_at(kind, keys))
    if len(structs) > 1:  # of the variant that the section names
        structs = [struct for struct in structs if struct.tag == _value(tree, [*keys, VARIANT])]
    here = [field.encode_name for struct in structs for field in struct.fields]
    everywhere = list(_known(kind))
    near = [KEYS[name]] if name in KEYS and name not in here else []
    near = near or difflib.get_close_matches(name, here, 1)
    near = near or sorted((key for key in everywhere if key.rpartition(".")[2] == name), key=_depth)
    near = near or difflib.get_close_matches(".".join([*keys, name]), everywhere, 1)
    where = f"section {'.'.join(keys)}" if keys else "recipe"
    return f"{'.'.join([*keys, name])}: unknown key; the {where} has {', '.join(here)}{_suggestion(near)}"


def _recipe_key(keys: list[str]) -> str:
    """Return a dotted key of a recipe, also for a checkpoint, which has the recipe in `config`."""
    return ".".join(keys).removeprefix("config.")


def _depth(key: str) -> int:
    return key.count(".")


def _suggestion(near: list[str]) -> str:
    return f"; did you mean {near[0]}?" if near else ""


def _known(kind: inspect.Type, place: str = "") -> Iterator[str]:
    """Every dotted key that a recipe of this type may have."""
    for struct in _structs(kind):
        for field in struct.fields:
            path = f"{place}.{field.encode_name}" if place else field.encode_name
            yield path
            yield from _known(field.type, path)


def _choices(kind: inspect.Type, keys: list[str]) -> set[str]:
    """The values a key may have, where they are few words: names of variants, and literals."""
    if keys and keys[-1] == VARIANT:
        return {str(struct.tag) for struct in _structs(_at(kind, keys[:-1]))}
    wanted = _at(kind, keys)
    return {str(value) for value in wanted.values} if isinstance(wanted, inspect.LiteralType) else set()


def _at(kind: inspect.Type, keys: list[str]) -> inspect.Type:
    """The type of what stands at `keys`, any variant's."""
    for key in keys:
        if isinstance(kind, inspect.VarTupleType):
            kind = kind.item_type
            continue
        fields = [
            field.type for struct in _structs(kind) for field in struct.fields if field.encode_name == key
        ]
        kind = fields[0] if fields else inspect.AnyType()
    return kind


def _structs(kind: inspect.Type) -> list[inspect.StructType]:
    options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return [option for option in options if isinstance(option, inspect.StructType)]


def _value(tree: Any, keys: list[str]) -> Any:
    for key in keys:
        tree = tree[int(key)] if isinstance(tree, list) else tree.get(key) if isinstance(tree, dict) else None
    return tree


def shown(value: Any) -> str:
    """A value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
