"""The plain values that a function names or compares with, and the helpers that it calls."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

from torch import nn

from refold.graph.copies.held import is_filled
from refold.graph.trace.code.names import OTHERS, names_in
from refold.graph.trace.code.source import parsed

_DEPTH, _MOST_HELPERS = 3, 64


def compared(function: Callable[..., Any]) -> list[Any]:
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
        named = [value for one in edge for held in values_of(one).values() for value in _each(held)]
        edge = [
            value
            for value in named
            if (code := code_of(value)) is not None and found.setdefault(code, value) is value
        ]
        if len(found) > _MOST_HELPERS:
            break
    return list(found.values())[:_MOST_HELPERS]


def _each(held: Any) -> Iterable[Any]:
    """Return what a short list or table of functions holds; anything else by itself."""
    items = held.values() if isinstance(held, dict) else held
    is_short = isinstance(held, dict | list | tuple) and len(items) <= _MOST_HELPERS
    return cast("Iterable[Any]", items) if is_short else (held,)


def values_named(function: Callable[..., Any]) -> list[Any]:
    """Return the plain values that names in a function stand for, and those that it is made with.

    Examples:
        >>> limits = {9: "small", 12: "large"}
        >>> values_named(lambda x: limits.get(int(x.shape[-1])))[-2:]
        [9, 12]
    """
    code = code_of(function)
    held = [] if code is None else [*constants_of(code), *values_of(function).values()]
    if code is not None and "getattr" in names_in(code):
        held.append(_attributes_of(getattr(function, "__self__", None)))
    return [plain for value in held for plain in _plain(value)]


def _plain(value: Any, depth: int = 2) -> Iterator[Any]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | str | float):
        yield value
    elif isinstance(value, _HOLDERS) and depth:
        for item in list(cast("Any", value))[:_MOST_HELPERS]:
            yield from _plain(item, depth - 1)


_HOLDERS = (tuple, list, set, frozenset, dict, nn.ModuleDict, nn.ParameterDict)  # keys of tables


def constants_of(code: CodeType) -> Iterator[Any]:
    """Yield the constants of code, and those of functions within it."""
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from constants_of(value)
        else:
            yield value


def values_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what the names in a function's code stand for, as far as that is plain to see."""
    code = code_of(function)
    if code is None:
        return {}
    plain = cast(FunctionType, _plain_function(function))
    names = names_in(code)
    found = {name: plain.__globals__[name] for name in names if name in plain.__globals__}
    for name, cell in zip(code.co_freevars, plain.__closure__ or (), strict=False):
        if is_filled(cell):
            found[name] = cell.cell_contents
    owners = [getattr(function, "__self__", None)]
    owners += [value for value in found.values() if isinstance(value, ModuleType)]
    for owner in owners:
        if owner is None or _home(owner) in OTHERS:
            continue
        for name in names:
            if name not in found and (value := _attribute(owner, name)) is not None:
                found[name] = value
    return found


def _attribute(owner: Any, name: str) -> Any:
    if name in getattr(owner, "__dict__", ()):
        return owner.__dict__[name]
    if isinstance(owner, nn.Module) and name in owner._modules:
        return owner._modules[name]
    return getattr(type(owner), "__dict__", {}).get(name)


def _attributes_of(owner: Any) -> list[str]:
    """Return the names of what a module holds of its own, for code that makes such a name."""
    if not isinstance(owner, nn.Module):
        return []
    return [*owner._modules, *owner._parameters, *owner._buffers]


def _home(owner: Any) -> str:
    name = owner.__name__ if isinstance(owner, ModuleType) else ""
    return name.partition(".")[0]


def _plain_function(value: Any) -> Any:
    """Return a function without what is around it."""
    plain = value.__func__ if isinstance(value, MethodType) else value
    return inspect.unwrap(plain) if isinstance(plain, FunctionType) else plain


def code_of(value: Any) -> CodeType | None:
    """Return the code of somebody's own function, None where it is torch's, Python's or none."""
    plain = _plain_function(value)
    if not isinstance(plain, FunctionType):
        return None
    if (plain.__module__ or "").partition(".")[0] in OTHERS:  # generated code has no module
        return None
    return plain.__code__
