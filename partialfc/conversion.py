"""What was parsed as a msgspec struct, or one line that says what is wrong."""

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from partialfc.errors import InputError
from partialfc.key_hints import KEY_HINTS, VALUE_HINTS
from partialfc.renamed import renamed_key, renamed_value

_BAD_KEY_MARKER = "key` in `"  # of msgspec's messages
VARIANT = "name"  # the key that says which variant of a section is meant


def convert(tree: Any, type_: Any, location: str) -> Any:
    """What was parsed as the struct `type_`, or one of a union; an InputError says in one line what is wrong at `location`."""
    for leaf, value in _checked_leaves(tree, location):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{location}: {leaf}: {value} is not a finite number")
        if isinstance(value, str) and not _encodable(value):
            raise InputError(
                f"{location}: {leaf}: {short_repr(value)}; expected text without zero bytes or surrogates"
            )
    try:
        return msgspec.convert(tree, type_)
    except msgspec.ValidationError as error:
        if type(error.__cause__) is InputError:  # a struct's own check, which names its keys
            raise InputError(f"{location}: {error.__cause__}") from error
        raise InputError(f"{location}: {_explain_validation_error(str(error), tree, type_)}") from error


def _encodable(text: str) -> bool:
    """Return True if text may be part of a path: no zero bytes, no lone surrogates."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _checked_leaves(tree: Any, location: str) -> list[tuple[str, Any]]:
    try:
        return list(_iter_leaves(tree))
    except RecursionError:
        raise InputError(f"{location}: nested too deeply") from None


def _iter_leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _iter_leaves(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _explain_validation_error(message: str, tree: Any, type_: Any) -> str:
    """A message of msgspec, with the key first, what was found there, and what is allowed."""
    problem, _, where = message.partition(" - at `")
    wrong_key, where = where.startswith(_BAD_KEY_MARKER), where.removeprefix(_BAD_KEY_MARKER)
    path = re.sub(r"\[(\d+)\]", r".\1", where.rstrip("`").removeprefix("$").removeprefix("."))
    path = path.partition("[...]")[0]  # of a mapping that is no section
    keys = path.split(".") if path else []
    if unknown := re.search(r"unknown field `(.*)`", problem):
        return _unknown_key_message(keys, unknown[1], tree, inspect.type_info(type_))
    found = _value_at(tree, keys)
    if old := renamed_value(_recipe_key(keys), found):
        return old
    if allowed := sorted(_allowed_values(inspect.type_info(type_), keys)):
        meant = [VALUE_HINTS[str(found)]] if VALUE_HINTS.get(str(found)) in allowed else []
        nearest = _did_you_mean(meant or difflib.get_close_matches(str(found), allowed, 1))
        return f"{path}: {short_repr(found)}, wanted one of {', '.join(allowed)}{nearest}"
    if wanted := _describe_expected(_type_at(inspect.type_info(type_), keys), is_key=wrong_key, value=found):
        return f"{path}: {short_repr(found)}, wanted {wanted}"
    problem = problem[0].lower() + problem[1:].replace("`", "")
    return f"{path or 'recipe'}: {problem}; found {short_repr(found)}"


def _describe_expected(type_: inspect.Type, *, is_key: bool, value: Any) -> str | None:
    mapping = find_mapping_type(type_)
    if mapping is None:
        return describe_type(type_)
    if is_key:
        return f"as a key {describe_type(mapping.key_type)}"
    return None if isinstance(value, float | int | dict) else "a number, or numbers by step or epoch"


def find_mapping_type(type_: inspect.Type) -> inspect.DictType | None:
    """Of a type that may be a mapping with keys that are described, beside others: the mapping."""
    options = type_.types if isinstance(type_, inspect.UnionType) else ()
    mappings = [it for it in options if isinstance(it, inspect.DictType)]
    return next((it for it in mappings if describe_type(it.key_type)), None)


def describe_type(type_: inspect.Type) -> str | None:
    """What is wanted of a value of this type, where its Meta says so in words."""
    options = type_.types if isinstance(type_, inspect.UnionType) else (type_,)
    schemas = [it.extra_json_schema for it in options if isinstance(it, inspect.Metadata)]
    return next((str(it["description"]) for it in schemas if it and "description" in it), None)


def _unknown_key_message(keys: list[str], name: str, tree: Any, type_: inspect.Type) -> str:
    """Says which keys the section has, and what was meant: in other trainers' words, else the nearest key there, else of that
    name elsewhere, else alike elsewhere.
    """
    section = _value_at(tree, [*keys, name])
    first_key = str(next(iter(section), "")) if isinstance(section, dict) else None
    if old := renamed_key(_recipe_key([*keys, name]), first_key):
        return old
    structs = _struct_types(_type_at(type_, keys))
    if len(structs) > 1:  # of the variant that the section names
        structs = [struct for struct in structs if struct.tag == _value_at(tree, [*keys, VARIANT])]
    here = [field.encode_name for struct in structs for field in struct.fields]
    everywhere = list(_iter_known_keys(type_))
    near = [KEY_HINTS[name]] if name in KEY_HINTS and name not in here else []
    near = near or difflib.get_close_matches(name, here, 1)
    near = near or sorted((key for key in everywhere if key.rpartition(".")[2] == name), key=_key_depth)
    near = near or difflib.get_close_matches(".".join([*keys, name]), everywhere, 1)
    where = f"section {'.'.join(keys)}" if keys else "recipe"
    return f"{'.'.join([*keys, name])}: unknown key; the {where} has {', '.join(here)}{_did_you_mean(near)}"


def _recipe_key(keys: list[str]) -> str:
    """Return a dotted key of a recipe, also for a checkpoint, which has the recipe in `config`."""
    return ".".join(keys).removeprefix("config.")


def _key_depth(key: str) -> int:
    return key.count(".")


def _did_you_mean(matches: list[str]) -> str:
    return f"; did you mean {matches[0]}?" if matches else ""


def _iter_known_keys(type_: inspect.Type, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a recipe of this type may have."""
    for struct in _struct_types(type_):
        for field in struct.fields:
            path = f"{prefix}.{field.encode_name}" if prefix else field.encode_name
            yield path
            yield from _iter_known_keys(field.type, path)


def _allowed_values(type_: inspect.Type, keys: list[str]) -> set[str]:
    """The values a key may have, where they are few words: names of variants, and literals."""
    if keys and keys[-1] == VARIANT:
        return {str(struct.tag) for struct in _struct_types(_type_at(type_, keys[:-1]))}
    wanted = _type_at(type_, keys)
    return {str(value) for value in wanted.values} if isinstance(wanted, inspect.LiteralType) else set()


def _type_at(type_: inspect.Type, keys: list[str]) -> inspect.Type:
    """The type of what stands at `keys`, any variant's."""
    for key in keys:
        if isinstance(type_, inspect.VarTupleType):
            type_ = type_.item_type
            continue
        fields = [
            field.type
            for struct in _struct_types(type_)
            for field in struct.fields
            if field.encode_name == key
        ]
        type_ = fields[0] if fields else inspect.AnyType()
    return type_


def _struct_types(type_: inspect.Type) -> list[inspect.StructType]:
    options = type_.types if isinstance(type_, inspect.UnionType) else (type_,)
    return [option for option in options if isinstance(option, inspect.StructType)]


def _value_at(tree: Any, keys: list[str]) -> Any:
    for key in keys:
        tree = tree[int(key)] if isinstance(tree, list) else tree.get(key) if isinstance(tree, dict) else None
    return tree


def short_repr(value: Any) -> str:
    """A value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
