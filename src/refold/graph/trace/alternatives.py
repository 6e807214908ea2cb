"""What else a plain argument may be: the values that code compares it with."""

from __future__ import annotations

import ast
import enum
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from refold.graph.trace.doubts import parsed
from refold.graph.trace.helpers import helpers_of, named_in

_MOST = 8
_WIDEST = 2048


def other_values(value: Any, functions: Iterable[Callable[..., Any]]) -> list[Any]:
    """Return other values that an argument may have, as far as its kind and the code tell.

    Args:
        value: the one that was given.
        functions: the code that it is given to.

    Examples:
        >>> other_values(True, []), other_values(2, [])
        ([False], [3])
    """
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, enum.Enum):
        return [other for other in type(value) if other is not value]
    if not isinstance(value, int | float | str | None):
        return []
    found = [constant for function in functions for constant in _compared(function)]
    texts = [constant for constant in dict.fromkeys(found) if isinstance(constant, str)][:_MOST]
    if isinstance(value, str):
        return [*(text for text in texts if text != value), f"not {value}"]
    if value is None:
        return [*texts, texts, dict.fromkeys(texts, True)] if texts else []
    numbers = [n for n in found if isinstance(n, int | float) and not isinstance(n, bool)]
    kind = type(value)
    others = [value + 1, *(kind(n + step) for n in numbers for step in (-1, 0, 1))]
    return [other for other in dict.fromkeys(others) if other != value][:_MOST]


def compared_sizes(function: Callable[..., Any]) -> list[int]:
    """Return the numbers that the sides of a map may be compared with: by a function, its helpers.

    Those that stand in a comparison come first, then those that names of the code stand for.

    Examples:
        >>> compared_sizes(max)
        []
    """
    code = [function, *helpers_of(function)]
    found = [*chain.from_iterable(map(_compared, code)), *chain.from_iterable(map(named_in, code))]
    plain = (str(constant) for constant in found if isinstance(constant, int | str))
    sizes = [int(digits) for text in plain for digits in re.findall(r"\d{1,4}", text)]
    return [size for size in dict.fromkeys(sizes) if 1 < size < _WIDEST]


def branches_on(function: Callable[..., Any], name: str) -> bool:
    """Say whether a function decides by an argument of its own what it runs.

    Examples:
        >>> branches_on(max, "key")
        False
    """
    choices = [n for n in ast.walk(parsed(function)) if isinstance(n, ast.If | ast.IfExp)]
    tests = [part for choice in choices for part in ast.walk(choice.test)]
    return any(isinstance(part, ast.Name) and part.id == name for part in tests)


def _compared(function: Callable[..., Any]) -> list[Any]:
    """Return the constants that a function compares something with, or looks up."""
    found = [part for node in ast.walk(parsed(function)) for part in _sides(node)]
    return [part.value for part in found if isinstance(part, ast.Constant)]


def _sides(node: ast.AST) -> Iterator[ast.AST | None]:
    match node:
        case ast.Compare(left=left, comparators=others):
            for side in (left, *others):
                yield from ast.walk(side)
        case ast.Dict(keys=keys):
            yield from keys
        case ast.MatchValue(value=value):
            yield value
        case _:
            pass
