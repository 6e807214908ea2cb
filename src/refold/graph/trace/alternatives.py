"""What else an argument or a size may be: the values that code compares it with, or names."""

from __future__ import annotations

import ast
import enum
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

from refold.graph.copies.held import is_filled
from refold.graph.trace.code import names_in
from refold.graph.trace.doubts import parsed

_MOST = 8
_WIDEST = 2048
_DEPTH, _MOST_HELPERS = 3, 64
_FOREIGN = ("torch", "torchvision", "numpy")


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
    found = [
        *chain.from_iterable(map(_compared, code)),
        *chain.from_iterable(map(values_named, code)),
    ]
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


def helpers_of(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Return the Python functions that a function names, and those that they name, nearest first.

    Examples:
        >>> def side(x): return x.shape[-1]
        >>> def ask(x): return side(x) == 9
        >>> [one.__name__ for one in helpers_of(lambda x: ask(x))]
        ['ask', 'side']
    """
    found, edge = dict[CodeType, Callable[..., Any]](), [function]
    for _ in range(_DEPTH):
        named = [value for one in edge for value in _values(one).values()]
        edge = [
            value
            for value in named
            if (code := _code(value)) is not None and found.setdefault(code, value) is value
        ]
        if len(found) > _MOST_HELPERS:
            break
    return list(found.values())[:_MOST_HELPERS]


def values_named(function: Callable[..., Any]) -> list[Any]:
    """Return the plain values that names in a function stand for, and those that it is made with.

    Examples:
        >>> limits = {9: "small", 12: "large"}
        >>> values_named(lambda x: limits.get(int(x.shape[-1])))[-2:]
        [9, 12]
    """
    code = _code(function)
    held = [] if code is None else [*_constants(code), *_values(function).values()]
    return [plain for value in held for plain in _plain(value)]


def _plain(value: Any, depth: int = 2) -> Iterator[Any]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | str):
        yield value
    elif isinstance(value, tuple | list | set | frozenset | dict) and depth:
        for item in list(cast("Any", value))[:_MOST_HELPERS]:
            yield from _plain(item, depth - 1)


def _constants(code: CodeType) -> Iterator[Any]:
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _constants(value)
        else:
            yield value


def _values(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what the names in a function's code stand for, as far as that is plain to see."""
    code = _code(function)
    if code is None:
        return {}
    plain = cast(FunctionType, getattr(function, "__func__", function))
    names = names_in(code)
    found = {name: plain.__globals__[name] for name in names if name in plain.__globals__}
    for name, cell in zip(code.co_freevars, plain.__closure__ or (), strict=False):
        if is_filled(cell):
            found[name] = cell.cell_contents
    owners = [getattr(function, "__self__", None)]
    owners += [value for value in found.values() if isinstance(value, ModuleType)]
    for owner in owners:
        if owner is None or _home(owner) in _FOREIGN:
            continue
        for name in names:
            if name not in found and (value := _attribute(owner, name)) is not None:
                found[name] = value
    return found


def _attribute(owner: Any, name: str) -> Any:
    if name in getattr(owner, "__dict__", ()):
        return owner.__dict__[name]
    return getattr(type(owner), "__dict__", {}).get(name)


def _home(owner: Any) -> str:
    name = owner.__name__ if isinstance(owner, ModuleType) else ""
    return name.partition(".")[0]


def _code(value: Any) -> CodeType | None:
    """Return the code of a function of somebody's own, None where it is torch's or no function."""
    plain = value.__func__ if isinstance(value, MethodType) else value
    if not isinstance(plain, FunctionType) or plain.__module__.partition(".")[0] in _FOREIGN:
        return None
    return plain.__code__
