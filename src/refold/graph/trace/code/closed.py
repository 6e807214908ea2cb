"""Whether code draws on nothing that may be another thing in the next call: names tell."""

from __future__ import annotations

import dis
import enum
import functools
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, cast

import torch
from torch import nn

from refold.graph.copies.held import ATOMS, bound_values
from refold.graph.trace.code.names import (
    functions_of,
    is_foreign,
    is_foreign_home,
    named_in,
    names_in,
)

_DEPTH, _MOST = 3, 64
_PURE = frozenset(
    {"torch", "torchvision", "math", "operator", "_operator", "builtins", "typing"}
    | {"itertools", "functools", "_functools", "collections", "contextlib", "dataclasses", "enum"}
)  # what they make is of that call alone
_REACHING = frozenset({"open", "input", "eval", "exec", "__import__", "globals", "id", "hash"})
_PLAIN = (
    *(*ATOMS, torch.Tensor, nn.Module, torch.dtype, torch.device, torch.Size, torch.layout),
    *(torch.memory_format, enum.Enum, slice, range, type(...)),
)
_MADE = (nn.Module, BaseException, enum.Enum, tuple)
_TABLES = frozenset(nn.Module().__dict__)


def is_closed(module: nn.Module, known: dict[type, bool]) -> bool:
    """Say whether a module's forward does the same in every call with equal arguments.

    Its code names nothing but torch, plain values, other modules and functions of that kind; none
    of what it holds is a generator, an iterator or an object that nobody knows.

    Args:
        module: any; its parts are asked about by themselves.
        known: what was found out about classes; filled by this function.

    Examples:
        >>> class Fixed(nn.Module):
        ...     def forward(self, x): return x.relu() * 2
        >>> class Other(nn.Module):
        ...     def forward(self, x): return x * next(self.steps)
        >>> other = Other()
        >>> other.steps = iter([1, 2])
        >>> is_closed(Fixed(), {}), is_closed(other, {})
        (True, False)
    """
    kind = type(module)
    if kind not in known:
        known[kind] = all(map(_is_harmless, _class_values(kind))) and all(
            _is_closed(function) for function in functions_of(kind)
        )
    return known[kind] and all(
        _is_harmless(value) for name, value in vars(module).items() if name not in _TABLES
    )


def _class_values(kind: type) -> Iterator[Any]:
    for base in kind.__mro__:
        for name, value in () if is_foreign(base) else vars(base).items():
            if not name.startswith("__") and not hasattr(type(value), "__get__"):
                yield value


def _is_closed(function: FunctionType) -> bool:
    names = names_in(function.__code__)
    if not _REACHING.isdisjoint(names) or _imports(function.__code__):
        return False
    named = (value for _, _, value in named_in(function))
    return all(map(_is_harmless, named)) and all(map(_is_harmless, bound_values(function)))


@functools.lru_cache(maxsize=4096)
def _imports(code: CodeType) -> bool:
    inner = (_imports(part) for part in code.co_consts if isinstance(part, CodeType))
    return dis.opmap["IMPORT_NAME"] in code.co_code[::2] or any(inner)


def _is_harmless(value: Any, depth: int = _DEPTH) -> bool:
    """Say whether a value is the same in every call, or a function whose code is looked at."""
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, tuple | list | set | frozenset | dict):
        table = cast("dict[Any, Any]", value) if isinstance(value, dict) else None
        items = list(cast("Any", value) if table is None else table.values())
        return depth > 0 < _MOST - len(items) and all(_is_harmless(v, depth - 1) for v in items)
    if isinstance(value, functools.partial):
        return all(_is_harmless(part, depth) for part in bound_values(value))
    if isinstance(value, FunctionType):
        return not is_foreign(value) or _is_pure(value)
    if isinstance(value, BuiltinFunctionType):
        return _is_pure(value)
    if isinstance(value, ModuleType):
        return _root(value.__name__) in _PURE or not is_foreign_home(value.__name__)
    if isinstance(value, type):
        return _is_pure(value) or (not is_foreign(value) and issubclass(value, _MADE))
    return _root(type(value).__module__) in ("typing", "torch")


def _is_pure(value: Callable[..., Any]) -> bool:
    owner = getattr(value, "__self__", None)
    kind = owner if isinstance(owner, type) else type(owner)
    return _root(value.__module__ or kind.__module__) in _PURE and not isinstance(
        owner, torch.Generator
    )


def _root(name: Any) -> str:
    return str(name).partition(".")[0]
