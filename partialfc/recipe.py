"""YAML and `key=value` overrides -> a checked msgspec struct, or one line that says what is wrong."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec import inspect

from partialfc.errors import InputError
from partialfc.shipped import recipe_path
from partialfc.words import KEYS, NAMES

T = TypeVar("T", bound=msgspec.Struct)

VARIANT = "name"  # the key that says which variant of a section is meant
BASE = "base"  # the key that says which recipe this one changes


def load(recipe: Path | str, overrides: Sequence[str], kind: type[T]) -> T:
    """Read a recipe, a file's or the name of one that ships, apply `a.b=c` overrides, and check the whole against the
    struct `kind`.

    `section.name=variant` starts that section anew, from the defaults of the variant, before other overrides
    of it. A recipe's `base:`, a file's path relative to the recipe or such a name, is the recipe that it changes: its own
    sections are laid over that one's, key by key, or anew where they name another variant. An InputError names in one line the place,
    what was found and what is wanted.
    """
    path = recipe_path(recipe)
    tree = _tree(path, kind)
    assignments = [_assignment(override) for override in overrides]
    for keys, value in sorted(assignments, key=lambda assignment: assignment[0][-1] != VARIANT):
        _assign(tree, keys, value)
    _name_defaults(tree, kind)
    settings: T = converted(tree, kind, str(path))
    return settings


def _tree(path: Path, kind: type[msgspec.Struct], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's sections over those of its base. above: the recipes that are based on this one."""
    place = f"recipe {path}"
    if path.resolve() in above:
        raise InputError(f"{place}: based on itself; wanted a `base` that leads to an end")
    try:
        if path.exists() and not path.is_file():  # a device may never end
            raise InputError(f"{place}: a folder or a device; wanted a file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{place}: {error.strerror if isinstance(error, OSError) else error}") from error
    tree = _parse(text, place) or {}
    if not isinstance(tree, dict):
        raise InputError(f"{place}: {_shown(tree)}, wanted sections with keys")
    base = tree.pop(BASE, None)
    if base is None:
        whole = {}
    elif isinstance(base, str) and "\0" not in base:
        whole = _tree(recipe_path(base, path.parent), kind, (*above, path.resolve()))
    else:
        raise InputError(f"{place}: base: {_shown(base)}, wanted the path of a recipe")
    _lay_over(whole, tree)
    _name_defaults(whole, kind)
    return whole


def _lay_over(tree: dict[Any, Any], changes: dict[Any, Any]) -> None:
    for key, value in changes.items():
        old = tree.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if VARIANT in value and value[VARIANT] != old.get(VARIANT):
                old.clear()  # no value of the old variant survives
            _lay_over(old, value)
        else:
            tree[key] = value


def dump(settings: msgspec.Struct) -> str:
    """The resolved recipe as YAML: every setting, defaults included."""
    return yaml.safe_dump(msgspec.to_builtins(settings), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, a key given twice is an error, and so is an alias: a few lines of them stand for
    more than there is memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"an alias, *{event.anchor}; wanted the value itself", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(str(self.construct_object(key)) for key, _ in node.value)
        if repeated := sorted(key for key, times in keys.items() if times > 1):
            raise yaml.MarkedYAMLError(problem=f"{repeated[0]} given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def converted(tree: Any, kind: Any, place: str) -> Any:
    """What was parsed as the struct `kind`, or one of a union; an InputError says in one line what is wrong at `place`."""
    for leaf, value in _leaves(tree):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{place}: {leaf}: {value} is not a finite number")
        if isinstance(value, str) and "\0" in value:  # which no path may have
            raise InputError(f"{place}: {leaf}: {_shown(value)}, wanted text without zero bytes")
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        if type(error.__cause__) is InputError:  # a struct's own check, which names its keys
            raise InputError(f"{place}: {error.__cause__}") from error
        raise InputError(f"{place}: {_explained(str(error), tree, kind)}") from error


def _parse(text: str, place: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{place}{line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{place}: not YAML: {' '.join(str(error).split())}") from error


def _assignment(override: str) -> tuple[list[str], Any]:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"override {override!r}: wanted section.key=value")
    return path.split("."), _parse(text, f"override {override!r}")


def _assign(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    *sections, key = keys
    for position, name in enumerate(sections):
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise InputError(f"override {'.'.join(keys)}: {'.'.join(sections[: position + 1])} is no section")
    if key == VARIANT and tree.get(VARIANT) != value:
        tree.clear()  # no value of the old variant survives
    tree[key] = value


def _name_defaults(tree: dict[str, Any], kind: type[msgspec.Struct]) -> None:
    """A section of several variants that names none is of the default one."""
    for field in msgspec.structs.fields(kind):
        section = tree.get(field.encode_name)
        tag = getattr(field.default, "__struct_config__", None) and field.default.__struct_config__.tag
        if isinstance(section, dict) and tag is not None:
            section.setdefault(VARIANT, tag)


def _leaves(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(child, f"{place}.{key}" if place else str(key))
    else:
        yield place, node


def _explained(message: str, tree: Any, kind: Any) -> str:
    """A message of msgspec, with the key first, what was found there, and what is allowed."""
    problem, _, where = message.partition(" - at `")
    path = re.sub(r"\[(\d+)\]", r".\1", where.rstrip("`").removeprefix("$").removeprefix("."))
    keys = path.split(".") if path else []
    if unknown := re.search(r"unknown field `(.*)`", problem):
        return _unknown(keys, unknown[1], tree, inspect.type_info(kind))
    found = _value(tree, keys)
    if allowed := sorted(_choices(inspect.type_info(kind), keys)):
        meant = [NAMES[str(found)]] if NAMES.get(str(found)) in allowed else []
        nearest = _suggestion(meant or difflib.get_close_matches(str(found), allowed, 1))
        return f"{path}: {_shown(found)}, wanted one of {', '.join(allowed)}{nearest}"
    if wanted := description(_at(inspect.type_info(kind), keys)):
        return f"{path}: {_shown(found)}, wanted {wanted}"
    problem = problem[0].lower() + problem[1:].replace("`", "")
    return f"{path or 'recipe'}: {problem}; found {_shown(found)}"


def description(kind: inspect.Type) -> str | None:
    """What is wanted of a value of this type, where its Meta says so in words."""
    options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    schemas = [it.extra_json_schema for it in options if isinstance(it, inspect.Metadata)]
    return next((str(it["description"]) for it in schemas if it and "description" in it), None)


def _unknown(keys: list[str], name: str, tree: Any, kind: inspect.Type) -> str:
    """Says which keys the section has, and what was meant: in other trainers' words, else the nearest key there, else of that
    name elsewhere, else alike elsewhere.
    """
    structs = _structs(_at(kind, keys))
    if len(structs) > 1:  # of the variant that the section names
        structs = [struct for struct in structs if struct.tag == _value(tree, [*keys, VARIANT])]
    here = [field.encode_name for struct in structs for field in struct.fields]
    everywhere = list(_known(kind))
    near = [KEYS[name]] if name in KEYS and name not in here else []
    near = near or difflib.get_close_matches(name, here, 1)
    near = near or sorted((key for key in everywhere if key.rpartition(".")[2] == name), key=_depth)
    near = near or difflib.get_close_matches(".".join([*keys, name]), everywhere, 1)
    section = f"section {'.'.join(keys)}" if keys else "recipe"
    return f"{'.'.join([*keys, name])}: unknown key; the {section} has {', '.join(here)}{_suggestion(near)}"


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


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
