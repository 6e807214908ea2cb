"""`help()` shows a docstring as it is written: its paragraphs have one left margin."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "refold"
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def margin(line: str) -> int:
    return len(line) - len(line.lstrip())


def uneven(text: str) -> list[str]:
    """Return the first line of every paragraph that steps in or out; sections, lists, code may."""
    found: list[str] = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        is_list = lines[0].startswith(("- ", "1. "))
        is_free = is_list or lines[0].endswith(":") or margin(lines[0]) or ">>>" in paragraph
        if not is_free and len({margin(line) for line in lines}) > 1:
            found.append(lines[0])
    return found


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_docstrings_have_one_margin(path: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, DOCUMENTED)]
    texts = {getattr(node, "name", "the file"): ast.get_docstring(node) or "" for node in nodes}
    assert {name: uneven(text) for name, text in texts.items() if uneven(text)} == {}


def test_an_uneven_paragraph_is_found() -> None:
    assert uneven("Fold.\n\nIt stays\n    as it\nis.\n\nArgs:\n    x: a\n        number") == [
        "It stays"
    ]
    assert uneven("Fold.\n\nIt\nstays.\n\n    1. code\n       more") == []
