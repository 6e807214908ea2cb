"""What lists, tables and objects held when a fold was made: a call looks whether they still do.

Nobody hears of `self.options["norm"] = False` or `self.config.norm = False`. So a method whose
code has read such things compares them with what they were before it runs.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any, cast

import torch
from torch import nn

from refold.errors import RefusedError
from refold.graph.copies.held import ATOMS, CALLABLES, bound_values
from refold.graph.copies.modules import submodule
from refold.graph.trace.code import functions_of, names_in
from refold.graph.trace.recorder.flags import holds_plain, texts_in

HELD = "_refold_held"
_DEEPEST, _FEW = 4, 17
_UNIQUE = (type, Enum, BuiltinFunctionType, FunctionType, torch.dtype, torch.layout)
"""What is told by being itself, in copies as well."""
_BY_ANY_NAME = frozenset({"getattr", "vars", "__dict__", "values", "items"})


@dataclass(frozen=True)
class Contents:
    """What attributes of a module held.

    Args:
        where: the path of the module, for a refusal.
        held: what they held, by the path of a module below and the name of its attribute.
        words: the names by which the code of the model may ask; None for any name.
    """

    where: str
    held: dict[tuple[str, str], Any]
    words: frozenset[str] | None

    def check(self, module: nn.Module) -> None:
        """Refuse to run where something else is held now.

        Raises:
            RefusedError: then.
        """
        for (path, name), before in self.held.items():
            held = submodule(module, path).__dict__.get(name) if path else module.__dict__.get(name)
            if contents(held, self.words) != before:
                full = ".".join(part for part in (self.where, path, name) if part)
                raise RefusedError(
                    f"{full} holds something else than when this model was folded, and its "
                    "forward was made for that: change it in the original model, then fold"
                )


def contents(value: Any, words: frozenset[str] | None, depth: int = 0) -> Any:
    """Return what a value holds, as plain values that can be compared.

    Args:
        value: any.
        words: the names that matter; None for all.
        depth: how far inside it stands.

    Examples:
        >>> contents({"norm": True, "other": [1]}, frozenset({"norm"}))
        ('dict', {'norm': True})
    """
    if type(value) in ATOMS or depth > _DEEPEST:
        return value if type(value) in ATOMS else type(value).__name__
    inner = functools.partial(contents, words=words, depth=depth + 1)
    if isinstance(value, list | tuple | deque):
        return type(value).__name__, [inner(item) for item in cast("list[Any]", value)]
    if isinstance(value, set | frozenset):
        return type(value).__name__, {_compared(item) for item in cast("set[Any]", value)}
    if isinstance(value, CALLABLES):
        return "function", [inner(item) for item in bound_values(value)]
    table = dict(_table(value))
    if not table and not holds_plain(value):
        return _told(value)
    return type(value).__name__, {
        _compared(key): inner(item)
        for key, item in table.items()
        if words is None or not isinstance(key, str) or key in words
    }


def _told(value: Any) -> Any:
    """Return a value of no container, as a plain value."""
    if isinstance(value, nn.Module):  # of the network, not of its options
        return "part"
    if isinstance(value, torch.Tensor):
        is_few = value.device.type == "cpu" and value.numel() < _FEW
        return (str(value.dtype), str(value.tolist())) if is_few else "part"
    if hasattr(value, "tolist") and getattr(value, "size", _FEW) < _FEW:  # an array of NumPy
        return str(getattr(value, "dtype", "")), str(value.tolist())
    return _compared(value)


def _compared(value: Any) -> Any:
    """Return a value where equality says something of it, else the name of its type."""
    tells = type(value).__eq__ is not object.__eq__ or isinstance(value, _UNIQUE)
    return value if tells and type(value).__hash__ is not None else type(value).__name__


def _table(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from cast("dict[Any, Any]", value).items()
    if not holds_plain(value):
        return
    yield from getattr(value, "__dict__", {}).items()
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                yield name, getattr(value, name)


def words_of(kinds: Iterable[type], values: list[Any]) -> frozenset[str] | None:
    """Return the names by which the code of classes may ask what values hold; None for any.

    Examples:
        >>> words_of([nn.ReLU], [])
        frozenset()
    """
    codes = [function.__code__ for kind in kinds for function in functions_of(kind)]
    named = {name for code in codes for name in names_in(code)}
    for value in values:
        for base in type(value).__mro__:
            found = (getattr(one, "fget", one) for key, one in vars(base).items() if key in named)
            codes += [one.__code__ for one in found if isinstance(one, FunctionType)]
    words = {word for code in codes for word in (*names_in(code), *texts_in(code))}
    binds = any({*code.co_freevars} - {"__class__"} for code in codes)  # functions of its own
    return None if binds or words & _BY_ANY_NAME else frozenset(words)


def checking(function: FunctionType, name: str) -> FunctionType:
    """Return a method that runs another one once what its module holds is as it was."""
    is_compiling = torch.compiler.is_compiling

    def method(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        if not is_compiling():
            held = self.__dict__.get(kept)
            if held is not None:
                held.check(self)
        return function(self, *args, **kwargs)

    kept = HELD
    made = FunctionType(method.__code__, function.__globals__, name, None, method.__closure__)
    return cast(FunctionType, functools.wraps(function)(made))
