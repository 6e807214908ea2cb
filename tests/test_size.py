"""Small enough to read: the size budget of files and functions, and no public name unexplained."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "refold"
FILE_LINES, FUNCTION_LINES = 600, 60

FOLDERS = ("src", "tests", "benchmarks", "examples")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def length(function: Function) -> int:
    """Return the lines of a function, its docstring left out."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    doc = function.body[0]
    return lines - ((doc.end_lineno or doc.lineno) - doc.lineno + 1)


def public(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield the public functions and classes of a file, and the public methods of those."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            if any("overload" in ast.unparse(mark) for mark in node.decorator_list):
                continue
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


def undocumented(tree: ast.Module) -> list[str]:
    """Return the public names without a docstring; the file itself is one of them."""
    names = [name for name, node in public(tree) if not ast.get_docstring(node)]
    return names if ast.get_docstring(tree) else ["the file", *names]


def too_long(text: str) -> list[str]:
    """Return what is too long in a file: the file itself, or functions."""
    lines = len(text.splitlines())
    found = [f"the file: {lines}"] if lines > FILE_LINES else []
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, Function)]
    return found + [f"{f.name}: {length(f)}" for f in functions if length(f) > FUNCTION_LINES]


def test_sizes() -> None:
    found = {str(path.relative_to(ROOT)): too_long(path.read_text()) for path in FILES}
    assert {path: faults for path, faults in found.items() if faults} == {}


def test_public_names_are_documented() -> None:
    files = [path for path in FILES if path.is_relative_to(SOURCE)]
    found = {str(path): undocumented(ast.parse(path.read_text())) for path in files}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_checks_can_fail() -> None:
    long = ast.parse("def f():\n" + "    x = 1\n" * 61).body[0]
    assert isinstance(long, ast.FunctionDef)
    assert length(long) == 62
    assert too_long(ast.unparse(long)) == ["f: 62"]
    assert too_long("\n" * 601) == ["the file: 601"]
    assert undocumented(ast.parse('"""File."""\nclass A:\n    def b(self): ...')) == ["A", "A.b"]
