"""The functions that a forward runs, as far as names tell, and what those names stand for."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from itertools import chain
from types import CodeType, FunctionType, ModuleType
from typing import Any

OTHERS = frozenset({"torch", "torchvision", "numpy"}) | sys.stdlib_module_names
"""Packages whose code is nobody's model."""
_FOREIGN = OTHERS | {"refold"}
_MOST = 300


def is_foreign(value: Any) -> bool:
    """Say whether a function or a class is one of Python's, torch's or NumPy's own.

    Examples:
        >>> import torch
        >>> is_foreign(torch.nn.ReLU), is_foreign(is_foreign)
        (True, True)
    """
    home = getattr(value, "__module__", None)
    return home is None or is_foreign_home(str(home))


def is_foreign_home(name: str) -> bool:
    """Say whether a file, by its dotted name, is one of Python's, torch's or NumPy's own."""
    return name.partition(".")[0] in _FOREIGN


@functools.lru_cache(maxsize=1024)
def functions_of(kind: type) -> tuple[FunctionType, ...]:
    """Return the functions that a class's forward may run: its methods, helpers that they name.

    Examples:
        >>> import torch
        >>> functions_of(torch.nn.ReLU)
        ()
    """
    methods = methods_of(kind)
    found: dict[FunctionType, None] = {}
    pending = list(methods.get("forward", ()))
    while pending and len(found) < _MOST:
        function = pending.pop()
        if function in found:
            continue
        found[function] = None
        for name in names_in(function.__code__):
            pending.extend(methods.get(name, ()))
        for _, _, value in named_in(function):
            if isinstance(value, FunctionType) and not is_foreign(value):
                pending.append(value)
            elif not isinstance(value, type | ModuleType) and not is_foreign(type(value)):
                held = methods_of(type(value))  # of an object of the user's own
                pending.extend(f for n in names_in(function.__code__) for f in held.get(n, ()))
    return tuple(found)


def methods_of(kind: type) -> dict[str, list[FunctionType]]:
    """Return the functions of a class that are not torch's or Python's, by name, nearest first.

    Examples:
        >>> import torch
        >>> methods_of(torch.nn.ReLU)
        {}
    """
    found: dict[str, list[FunctionType]] = {}
    for base in kind.__mro__:
        for name, value in () if is_foreign(base) else vars(base).items():
            plain = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if isinstance(plain, FunctionType):
                found.setdefault(name, []).append(plain)
    return found


def named_in(function: FunctionType) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield what the names in a function stand for: the name, its table of globals, the value.

    The tables are that of the function's own file and those of the files it names (`utils.STORE`).
    """
    names = names_in(function.__code__)
    tables = [function.__globals__]
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and value.__name__.partition(".")[0] not in _FOREIGN:
            tables.append(vars(value))
    for table in tables:
        for name in names:
            if name in table:
                yield name, table, table[name]


@functools.lru_cache(maxsize=4096)
def names_in(code: CodeType) -> tuple[str, ...]:
    """Return the names of globals and attributes in code, in that of functions within it too."""
    inner = (names_in(part) for part in code.co_consts if isinstance(part, CodeType))
    return tuple(dict.fromkeys(chain(code.co_names, *inner)))
