"""Recipes: YAML and `key=value` overrides, converted to a validated msgspec struct."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from partialfc.bundled_recipes import resolve_recipe
from partialfc.conversion import VARIANT, convert, short_repr
from partialfc.errors import InputError
from partialfc.input_files import read_file

T = TypeVar("T", bound=msgspec.Struct)

BASE = "base"  # key for the recipe that this one extends


def load(recipe: Path | str, overrides: Sequence[str], config_type: type[T]) -> T:
    """Load a recipe from a file or a bundled one by name, apply `a.b=c` overrides, and validate it.

    `section.name=variant` resets the section to the defaults of the variant, before other overrides of it.
    The recipe in `base:`, a path relative to the recipe or a name, is extended key by key; a section that
    selects another variant is replaced.

    Args:
        recipe: File or name of a bundled recipe.
        overrides: `a.b=c` each.
        config_type: Struct of the result.

    Returns:
        Validated struct.

    Raises:
        InputError: If anything is invalid; one line with location, value and expectation.
    """
    path = resolve_recipe(recipe)
    tree = _load_tree(path, config_type)
    assignments = [_parse_override(override) for override in overrides]
    for keys, value in sorted(assignments, key=lambda assignment: assignment[0][-1] != VARIANT):
        _apply_override(tree, keys, value)
    _fill_default_variants(tree, config_type)
    settings: T = convert(tree, config_type, str(path))
    return settings


def _load_tree(
    path: Path, config_type: type[msgspec.Struct], parents: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """Return the sections of a recipe merged over those of its base; `parents` are the recipes that extend it."""
    place = f"recipe {path}"
    if path.resolve() in parents:
        raise InputError(f"{place}: its `base` leads back to itself")
    try:
        text = read_file(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{place}: {error.strerror if isinstance(error, OSError) else error}") from error
    tree = parse(text, place) or {}
    if not isinstance(tree, dict):
        raise InputError(f"{place}: {short_repr(tree)}, expected sections with keys")
    base = tree.pop(BASE, None)
    if base is None:
        whole = {}
    elif isinstance(base, str) and "\0" not in base:
        whole = _load_tree(resolve_recipe(base, path.parent), config_type, (*parents, path.resolve()))
    else:
        raise InputError(f"{place}: base: {short_repr(base)}, expected the path of a recipe")
    _merge(whole, tree)
    _fill_default_variants(whole, config_type)
    return whole


def _merge(tree: dict[Any, Any], overrides: dict[Any, Any]) -> None:
    for key, value in overrides.items():
        old = tree.get(key)
        stages = isinstance(value, dict) and 0 in value  # a schedule by step or epoch, which is one value
        if isinstance(old, dict) and isinstance(value, dict) and not stages:
            if VARIANT in value and value[VARIANT] != old.get(VARIANT):
                old.clear()  # drop all values of the old variant
            _merge(old, value)
        else:
            tree[key] = value


def dump(config: msgspec.Struct) -> str:
    """Return the resolved recipe as YAML, with all settings."""
    return yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False)


class _RecipeLoader(yaml.SafeLoader):
    """YAML loader where 1e-3 is a number, and duplicate keys and aliases are errors.

    A few lines of aliases can expand to more than memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem=f"an alias, *{event.anchor}; write the value instead", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(str(self.construct_object(key)) for key, _ in node.value)
        if repeated := sorted(key for key, times in keys.items() if times > 1):
            raise yaml.MarkedYAMLError(problem=f"{repeated[0]} given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse(text: str, location: str) -> Any:
    """Parse YAML.

    Returns:
        Parsed data.

    Raises:
        InputError: If it is invalid; the message starts with `location`.
    """
    try:
        return yaml.load(text, _RecipeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{location}{line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{location}: not YAML: {' '.join(str(error).split())}") from error


def _parse_override(override: str) -> tuple[list[str], Any]:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"override {override!r}: expected section.key=value")
    return path.split("."), parse(text, f"override {override!r}")


def _apply_override(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    *sections, key = keys
    for position, name in enumerate(sections):
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise InputError(
                f"override {'.'.join(keys)}: {'.'.join(sections[: position + 1])} is not a section"
            )
    if key == VARIANT and tree.get(VARIANT) != value:
        tree.clear()  # drop all values of the old variant
    tree[key] = value


def _fill_default_variants(tree: dict[str, Any], config_type: type[msgspec.Struct]) -> None:
    """Add the default variant to sections that select none."""
    for field in msgspec.structs.fields(config_type):
        section = tree.get(field.encode_name)
        tag = getattr(field.default, "__struct_config__", None) and field.default.__struct_config__.tag
        if isinstance(section, dict) and tag is not None:
            section.setdefault(VARIANT, tag)
