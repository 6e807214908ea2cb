"""`help()` shows a docstring as it is written: its paragraphs have one left margin."""

from __future__ import annotations

import ast
from pathlib import Path

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


def test_docstrings_have_one_margin() -> None:
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, DOCUMENTED) and (lines := uneven(ast.get_docstring(node) or "")):
                found[f"{path}: {getattr(node, 'name', 'the file')}"] = lines
    assert found == {}


def test_an_uneven_paragraph_is_found() -> None:
    assert uneven("Fold.\n\nIt stays\n    as it\nis.\n\nArgs:\n    x: a\n        number") == [
        "It stays"
    ]
    assert uneven("Fold.\n\nIt\nstays.\n\n    1. code\n       more") == []
