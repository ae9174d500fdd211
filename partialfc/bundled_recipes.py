"""Recipes that come with the package."""

import difflib
from pathlib import Path

from partialfc.errors import InputError

_RECIPES_DIR = Path(__file__).with_name("recipes")


def bundled_recipes() -> dict[str, Path]:
    """Return the recipes by name, sorted."""
    return {path.stem: path for path in sorted(_RECIPES_DIR.glob("*.yaml"))}


def recipe_summary(recipe: Path) -> str:
    """Return the first comment of a recipe, up to the first colon, semicolon or end of a sentence."""
    words: list[str] = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words += line.removeprefix("#").split()
    for place, word in enumerate(words):
        if word[-1] in ":;." and not word.startswith("arXiv"):
            return " ".join([*words[:place], word[:-1]])
    return " ".join(words)


def resolve_recipe(name: str | Path, relative_to: Path | None = None) -> Path:
    """Return the file of a recipe: a path, relative to the folder `relative_to`, or the name of a bundled recipe.

    Raises:
        InputError: If there is no such recipe.
    """
    path = Path(name) if relative_to is None else relative_to / name
    known = bundled_recipes()
    if path.is_file() or Path(name).name != str(name):
        return path
    if Path(name).suffix in ("", ".yaml") and Path(name).stem in known:
        return known[Path(name).stem]
    if Path(name).suffix or path.exists():
        return path
    near = difflib.get_close_matches(str(name), known, 1)
    suggestion = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"recipe {name}: not found; expected a file, or one of {', '.join(known)}{suggestion}")
