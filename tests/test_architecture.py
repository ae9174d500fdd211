"""The map of the code: each file and name that it mentions exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/explanation/architecture.md").read_text()


def names_of(path: Path) -> set[str]:
    """Return functions, classes and methods of a file."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def test_files_and_names_exist():
    mentioned = re.findall(r"`([\w/]+\.py): ([\w.]+)`", PAGE)
    assert len(mentioned) > 30
    for file, name in mentioned:
        assert name in names_of(ROOT / "partialfc" / file), f"{file}: {name}"
    for path in re.findall(r"`([\w/]+/(?:\w+\.py)?)`", PAGE):
        assert (ROOT / path).exists() or (ROOT / "partialfc" / path).exists(), path


def test_the_table_of_losses_is_where_the_map_says():
    assert "_LOSSES" in (ROOT / "partialfc/head/losses/__init__.py").read_text()
    assert "EVERY_LOSS" in (ROOT / "tests/head/test_losses.py").read_text()
