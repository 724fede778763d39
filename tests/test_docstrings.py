"""What a docstring may hold: a method that takes more than a screen is a page in docs/methods, named in the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "bench/modelassay").rglob("*.py"))
MAX_LINES = 30


def docstring_lines(source: str) -> list[tuple[str, int]]:
    """Name of each module, class and function with its docstring's lines."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [
        (getattr(node, "name", "module"), len((ast.get_docstring(node, clean=False) or "").splitlines()))
        for node in nodes
    ]


def test_no_docstring_is_longer_than_a_screen() -> None:
    assert docstring_lines('"""One.\n\nTwo."""\ndef f():\n    """Three."""\n') == [("module", 3), ("f", 1)]
    too_long = [(path.relative_to(ROOT), name, length) for path in SOURCES
                for name, length in docstring_lines(path.read_text()) if length > MAX_LINES]  # fmt: skip
    assert too_long == []


def test_pages_of_methods_are_there_and_are_named_in_the_code() -> None:
    named = {name for path in SOURCES for name in re.findall(r"docs/methods/[\w-]+\.md", path.read_text())}
    assert named == {str(path.relative_to(ROOT)) for path in (ROOT / "docs/methods").glob("*.md")}
