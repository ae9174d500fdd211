"""Docstrings, comments, messages and pages use plain English: short sentences, standard openings, American spelling."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_CHECKED = ("tests/", "partialfc/renamed.py")  # renamed.py lists old names
OPENINGS = re.compile(
    r"(What|Of|Whether|Around|How|Where|Those|Which|As|By|That|Who|Such|All|From|To|In|With|For|Beside|See) "
)
NOUN_OPENINGS = re.compile(r"(The|A|An) ")  # functions start with a verb
WORDS = re.compile(
    r"\b(wanted|wants?|goes on|go on|going on|gone on|went on|anew|beside|meanwhile|whatever|whoever|nobody|somebody|"
    r"anybody|told|stands? still|stood|begun|of whom|of ones? own|ours|theirs|everyones|kin|learnt|"
    r"worked on|works on|come to lie|at length 1|of length 1|looked at|closer look|in words|held against|"
    r"made up|by turns|but for|is none|are none|there is none|where there (?:is|are)|be they|be it|"
    r"so many|dealt out|for people|of others|to the bit|of use|is meant|came of|"
    r"centres?|greys?|normalis\w+|neighbours?|neighbouring|relabell\w+|colours?|recognis\w+|initialis\w+)\b",
    re.IGNORECASE,
)
MAX_WORDS = 25
CODE = re.compile(r"(?s:```.*?```)|^ +python -m .*$|`[^`]*`|\]\([^)]*\)|^\|.*$", re.MULTILINE)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def files() -> list[Path]:
    patterns = (
        "partialfc/**/*.py",
        "partialfc/**/*.md",
        "benchmarks/*.py",
        "experiments/*.py",
        "tools/*.py",
        "docs/**/*.md",
        "examples/*",
        "recipes/*",
        "*.md",
    )
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not str(path.relative_to(ROOT)).startswith(NOT_CHECKED))


def docstrings(node: ast.AST) -> Iterator[tuple[str, int, str]]:
    if text := ast.get_docstring(node):
        is_property = any("property" in ast.unparse(it) for it in getattr(node, "decorator_list", []))
        kind = "function" if isinstance(node, FUNCTIONS) and not is_property else "docstring"
        yield kind, getattr(node, "lineno", 1), text
    for field, below in zip(node.body, node.body[1:], strict=False):
        text = getattr(getattr(below, "value", None), "value", None)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(text, str):
            yield "docstring", below.lineno, text


def messages(node: ast.AST) -> Iterator[tuple[str, int, str]]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and " " in part.value:
            yield "message", node.lineno, part.value


def code_texts(source: str) -> Iterator[tuple[str, int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)):
            yield from docstrings(node)
        elif isinstance(node, ast.Raise | ast.Call | ast.Assign | ast.Return):
            yield from messages(node)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield "comment", token.start[0], token.string.lstrip("# ")


def texts(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yield kind, line and text of all prose in a file."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from code_texts(source)
    elif path.suffix == ".yaml":
        for number, line in enumerate(source.splitlines(), 1):
            if line.lstrip().startswith("#"):
                yield "yaml", number, line.lstrip(" #")
    else:
        yield "page", 1, source


def problems(path: Path) -> Iterator[str]:
    for kind, line, text in dict.fromkeys(texts(path)):
        place = f"{path.relative_to(ROOT)}:{line}"
        forbidden = {"function": (OPENINGS, NOUN_OPENINGS), "docstring": (OPENINGS,), "comment": (OPENINGS,)}
        if any(pattern.match(text) for pattern in forbidden.get(kind, ())):
            yield f"{place}: opening {text.split()[0]}"
        prose = CODE.sub("", text)
        for match in WORDS.finditer(prose):
            yield f"{place}: word {match.group().lower()}"
        if kind in ("function", "docstring", "page"):
            for sentence in re.split(r"(?<=[.:;!?])\s+|\n\s*\n|\n\s*[-*\d]", prose):
                if len(sentence.split()) > MAX_WORDS:
                    yield f"{place}: more than {MAX_WORDS} words: {' '.join(sentence.split()[:6])} ..."


def test_plain_english():
    found = [problem for path in files() for problem in problems(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ('def f():\n    """What it gives."""\n', "opening What"),
        ('def f():\n    """The rows."""\n', "opening The"),
        ('"""Class centres."""\n', "word centres"),
        ("x = 1  # of a rank, told to somebody\n", "word told"),
        ('raise ValueError("a list is wanted")\n', "word wanted"),
        (f'"""Return {"one of the " * 9}rows."""\n', "more than 25 words"),
    ],
)
def test_problems_are_found(tmp_path, monkeypatch, source, problem):
    monkeypatch.setattr("test_language.ROOT", tmp_path)
    (tmp_path / "a.py").write_text(source)
    assert any(problem in found for found in problems(tmp_path / "a.py"))
