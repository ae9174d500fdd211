"""What the documents say of recipes is so."""

import re
from pathlib import Path

import pytest

from partialfc.config import load_config

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs/coming_from_insightface.md").read_text().partition("## Keys")[2].partition("## What")[0]
SETTINGS = [
    code
    for line in TABLE.splitlines()
    if line.startswith("| ") and not line.startswith("| `config.`")
    for code in re.findall(r"`([a-z_.]+: [^`]+)`", line)
    if ".." not in code
]


def written(code: str) -> str:
    """A setting as a section of a recipe."""
    name, _, value = code.partition(": ")
    section, _, key = name.partition(".")
    return f"{section}: {{{key}: {value}}}" if key else code


@pytest.mark.parametrize("code", SETTINGS)
def test_settings_that_stand_for_insightfaces_are_recipes(tmp_path, code):
    (tmp_path / "recipe.yaml").write_text(
        f"base: {ROOT / 'recipes/ms1mv3_r50_cosface.yaml'}\n{written(code)}\n"
    )
    load_config(tmp_path / "recipe.yaml")


def test_there_are_some():
    assert len(SETTINGS) > 10


@pytest.mark.parametrize(
    "document", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target
