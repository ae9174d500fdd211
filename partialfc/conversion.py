"""Conversion of parsed data to msgspec structs, with one-line error messages."""

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

_BAD_KEY_MARKER = "key` in `"  # in msgspec's messages
VARIANT = "name"  # key that selects the variant of a section


def convert(tree: Any, type_: Any, location: str) -> Any:
    """Convert parsed data to the struct `type_`, or to a member of a union.

    Returns:
        The struct.

    Raises:
        InputError: If it is invalid; the message is one line and starts with `location`.
    """
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
        # Validation of the struct itself, whose message contains the keys.
        if type(error.__cause__) is InputError:
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
    """Return a message of msgspec as: key, value, allowed values."""
    problem, _, where = message.partition(" - at `")
    wrong_key, where = where.startswith(_BAD_KEY_MARKER), where.removeprefix(_BAD_KEY_MARKER)
    path = re.sub(r"\[(\d+)\]", r".\1", where.rstrip("`").removeprefix("$").removeprefix("."))
    path = path.partition("[...]")[0]  # of a mapping that is not a section
    keys = path.split(".") if path else []
    if unknown := re.search(r"unknown field `(.*)`", problem):
        return _unknown_key_message(keys, unknown[1], tree, inspect.type_info(type_))
    found = _value_at(tree, keys)
    if old := renamed_value(_recipe_key(keys), found):
        return old
    if allowed := sorted(_allowed_values(inspect.type_info(type_), keys)):
        meant = [VALUE_HINTS[str(found)]] if VALUE_HINTS.get(str(found)) in allowed else []
        nearest = _did_you_mean(meant or difflib.get_close_matches(str(found), allowed, 1))
        return f"{path}: {short_repr(found)}, expected one of {', '.join(allowed)}{nearest}"
    if expected := _describe_expected(
        _type_at(inspect.type_info(type_), keys), is_key=wrong_key, value=found
    ):
        return f"{path}: {short_repr(found)}, expected {expected}"
    problem = problem[0].lower() + problem[1:].replace("`", "")
    return f"{path or 'recipe'}: {problem}; found {short_repr(found)}"


def _describe_expected(type_: inspect.Type, *, is_key: bool, value: Any) -> str | None:
    mapping = find_mapping_type(type_)
    if mapping is None:
        return describe_type(type_)
    if is_key:
        return f"as a key {describe_type(mapping.key_type)}"
    return None if isinstance(value, float | int | dict) else "a number, or a schedule by step or epoch"


def find_mapping_type(type_: inspect.Type) -> inspect.DictType | None:
    """Return the mapping type of a union that contains one with documented keys."""
    options = type_.types if isinstance(type_, inspect.UnionType) else ()
    mappings = [it for it in options if isinstance(it, inspect.DictType)]
    return next((it for it in mappings if describe_type(it.key_type)), None)


def describe_type(type_: inspect.Type) -> str | None:
    """Return a description of the values of a type, from its Meta."""
    options = type_.types if isinstance(type_, inspect.UnionType) else (type_,)
    schemas = [it.extra_json_schema for it in options if isinstance(it, inspect.Metadata)]
    return next((str(it["description"]) for it in schemas if it and "description" in it), None)


def _unknown_key_message(keys: list[str], name: str, tree: Any, type_: inspect.Type) -> str:
    """Return a message with the keys of the section and a suggestion.

    Suggestions, in this order: the name in other trainers, a similar key of the section, the same key
    elsewhere, a similar key elsewhere.
    """
    section = _value_at(tree, [*keys, name])
    first_key = str(next(iter(section), "")) if isinstance(section, dict) else None
    if old := renamed_key(_recipe_key([*keys, name]), first_key):
        return old
    structs = _struct_types(_type_at(type_, keys))
    if len(structs) > 1:  # of the variant that the section selects
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
    """Return the dotted key of a recipe, also for a checkpoint, which contains the recipe as `config`."""
    return ".".join(keys).removeprefix("config.")


def _key_depth(key: str) -> int:
    return key.count(".")


def _did_you_mean(matches: list[str]) -> str:
    return f"; did you mean {matches[0]}?" if matches else ""


def _iter_known_keys(type_: inspect.Type, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a recipe of this type."""
    for struct in _struct_types(type_):
        for field in struct.fields:
            path = f"{prefix}.{field.encode_name}" if prefix else field.encode_name
            yield path
            yield from _iter_known_keys(field.type, path)


def _allowed_values(type_: inspect.Type, keys: list[str]) -> set[str]:
    """Return the allowed values of a key with few values: names of variants, and literals."""
    if keys and keys[-1] == VARIANT:
        return {str(struct.tag) for struct in _struct_types(_type_at(type_, keys[:-1]))}
    expected = _type_at(type_, keys)
    return {str(value) for value in expected.values} if isinstance(expected, inspect.LiteralType) else set()


def _type_at(type_: inspect.Type, keys: list[str]) -> inspect.Type:
    """Return the type at `keys`, for any variant."""
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
    """Return the repr of a value, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
