"""What a value holds besides modules, as something that can be compared, copied and kept in a file.

A copy of the value, also one from a file, holds the same.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from enum import Enum
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from refold.graph.copies.held import ATOMS, CALLABLES, bound_values
from refold.graph.trace.code.names import is_foreign

_KINDS = (Enum, BuiltinFunctionType, torch.dtype, torch.device, torch.memory_format)
_NESTS = (tuple, list, set, frozenset)
_DEEPEST = 12
_EXACT = ATOMS - {float, complex}
_MOST = 1 << 20
_UNIQUE = (type, Enum, BuiltinFunctionType, FunctionType, torch.dtype, torch.layout)
"""What is told by being itself, in copies as well."""


def is_flag(value: Any) -> bool:
    """Say whether a value is plain: what code decides by, or computes with.

    Examples:
        >>> is_flag(0.5), is_flag([1, 2]), is_flag(torch.relu), is_flag(nn.ReLU())
        (True, True, True, False)
    """
    if type(value) in ATOMS or isinstance(value, (*_KINDS, *CALLABLES)):
        return True
    if isinstance(value, dict):
        return all(map(is_flag, cast("dict[Any, Any]", value).values()))
    return isinstance(value, _NESTS) and all(map(is_flag, cast("list[Any]", value)))


def holds_plain(value: Any) -> bool:
    """Say whether a value may hold what code decides by: a container, an object of some class.

    Examples:
        >>> holds_plain([1]), holds_plain({}), holds_plain(2), holds_plain(nn.ReLU())
        (True, True, False, False)
    """
    if isinstance(value, (*_NESTS, dict, deque, *CALLABLES)):
        return True
    kind = type(value)
    is_other = isinstance(value, (nn.Module, torch.Tensor, type, ModuleType, *_KINDS))
    if kind in ATOMS or is_other:
        return False
    # Of the libraries' own objects those that are compared by what they hold: no logger, no lock.
    return not is_foreign(kind) or kind.__eq__ is not object.__eq__


def is_hashable(value: Any) -> bool:
    """Say whether a value has a hash: nothing in a plain one can be changed then.

    Examples:
        >>> is_hashable((1, "a")), is_hashable((1, []))
        (True, False)
    """
    try:
        hash(value)
    except TypeError:
        return False
    return True


def contents(
    value: Any, words: frozenset[str] | None, *, stored: frozenset[int] = frozenset()
) -> Any:
    """Return what a value holds, as plain values that can be compared.

    Args:
        value: any.
        words: the names that matter; None for all.
        stored: the parameters and buffers of the model, by id: what they hold is free.

    Examples:
        >>> contents({"norm": True, "other": [1]}, frozenset({"norm"}))
        ('dict', {'norm': True})
    """
    return _Reader(words, stored).read(value, 0)


class _Reader:
    """Reads what values hold, each object once: what holds it again names its place."""

    def __init__(self, words: frozenset[str] | None, stored: frozenset[int]) -> None:
        self.words, self.stored = words, stored
        self._seen: dict[int, tuple[int, Any]] = {}  # with the object, which must not go

    def read(self, value: Any, depth: int) -> Any:
        """Return what a value holds that stands so deep inside."""
        if type(value) in ATOMS:
            return value if value == value else ("", str(value))  # NaN is another one in a copy
        if isinstance(value, Tensor) or _is_array(value):
            return Numbers(value, is_free=id(value) in self.stored)
        is_code = isinstance(value, CALLABLES)
        if not is_code and not holds_plain(value):
            return "part" if isinstance(value, nn.Module) else _compared(value)
        if depth > _DEEPEST:
            return type(value).__name__
        if not isinstance(value, tuple | frozenset):
            if id(value) in self._seen:
                return "again", self._seen[id(value)][0]
            self._seen[id(value)] = len(self._seen), value
        if is_code:
            return "function", [self.read(item, depth + 1) for item in bound_values(value)]
        return self._inside(value, depth + 1)

    def _inside(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if isinstance(value, Set) and _is_theirs(value):
            return kind.__name__, {_compared(item) for item in cast("Set[Any]", value)}
        items: list[Any] = []
        if isinstance(value, Sequence) and _is_theirs(value):
            items = [*cast("Sequence[Any]", value)]
            if not _EXACT.issuperset(map(type, items)):  # else there is nothing to be read in them
                items = [self.read(item, depth) for item in items]
        elif is_foreign(kind) and kind.__hash__ is not None:  # a fraction, a path
            return value
        table = {
            _compared(key): self.read(item, depth)
            for held in _tables(value)
            for key, item in held.items()
            if self.words is None or key in self.words or not isinstance(key, str)
        }
        for name in _derived(kind):  # what a property has kept follows from the rest
            table.pop(name, None)
        return kind.__name__, *filter(None, [items, table])


def _is_theirs(value: Any) -> bool:
    """Say whether a container gives its items by code of Python's own: others may compute them."""
    if isinstance(value, list | tuple | set | frozenset | dict):
        return True
    return all(is_foreign(getattr(type(value), name, None)) for name in ("__iter__", "__getitem__"))


def _is_array(value: Any) -> bool:
    """Say whether a value is an array of NumPy, or a number of its own types."""
    return hasattr(type(value), "__array_interface__") and hasattr(value, "tolist")


def _compared(value: Any) -> Any:
    """Return a value where equality says something of it, else the name of its type."""
    tells = type(value).__eq__ is not object.__eq__ or isinstance(value, _UNIQUE)
    return value if tells and type(value).__hash__ is not None else type(value).__name__


def _tables(value: Any) -> Iterator[Mapping[Any, Any]]:
    if isinstance(value, dict):
        yield cast("dict[Any, Any]", value)
    elif isinstance(value, Mapping) and _is_theirs(value):
        yield cast("Mapping[Any, Any]", value)
    yield getattr(value, "__dict__", {})
    names = _slots(type(value))
    yield {name: getattr(value, name) for name in names if hasattr(value, name)}


@functools.lru_cache(maxsize=1024)
def _slots(kind: type) -> tuple[str, ...]:
    found = [base.__dict__.get("__slots__", ()) for base in kind.__mro__]
    names = [name for slots in found for name in ((slots,) if isinstance(slots, str) else slots)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


@functools.lru_cache(maxsize=1024)
def _derived(kind: type) -> tuple[str, ...]:
    attributes = (item for base in kind.__mro__ for item in vars(base).items())
    return tuple(n for n, one in attributes if isinstance(one, functools.cached_property))


class Numbers:
    """The numbers of a tensor or of an array of NumPy: equal to the same ones elsewhere.

    A tensor may have been moved, or cast, meanwhile.

    Args:
        value: the tensor or array.
        is_free: whether it may hold anything: a parameter, or more than can be kept.
    """

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, value: Any, *, is_free: bool = False) -> None:
        self.value = value
        self.is_free = is_free or (isinstance(value, Tensor) and not _is_usual(value))
        self._same: tuple[Any, int] | None = None

    def __repr__(self) -> str:
        """Say the shape."""
        return f"Numbers{tuple(self.value.shape)}"

    def kept(self) -> Numbers:
        """Return the numbers with a copy of their own."""
        value = self.value
        if self.is_free:
            made = Numbers(None, is_free=True)
        else:
            with _apart():
                own = value.detach().clone() if isinstance(value, Tensor) else value.copy()
            made = Numbers(own)
        made._remember(value)
        return made

    def __eq__(self, other: object) -> bool:
        """Say whether both hold the same."""
        if not isinstance(other, Numbers):
            return NotImplemented
        if self.value is other.value or self._is_known(other.value) or other._is_known(self.value):
            return True
        if self.is_free or other.is_free:
            return True
        if not _is_same(self.value, other.value):
            return False
        self._remember(other.value)
        other._remember(self.value)
        return True

    def _remember(self, value: Any) -> None:
        if isinstance(value, Tensor) and not value.is_inference():
            self._same = weakref.ref(value), value._version

    def _is_known(self, value: Any) -> bool:
        """Say whether a tensor was found the same, and no operator has written to it since."""
        known = self._same
        return known is not None and known[0]() is value and value._version == known[1]

    def __getstate__(self) -> tuple[Any, bool]:
        """Return what goes into copies and files."""
        return self.value, self.is_free

    def __setstate__(self, state: tuple[Any, bool]) -> None:
        """Take what comes from there."""
        self.value, self.is_free = state
        self._same = None


def kept(found: Any) -> Any:
    """Return contents with copies of all numbers in them."""
    if isinstance(found, Numbers):
        return found.kept()
    if isinstance(found, dict):
        return {key: kept(item) for key, item in cast("dict[Any, Any]", found).items()}
    if isinstance(found, list | tuple):
        items = [kept(item) for item in cast("list[Any]", found)]
        return tuple(items) if isinstance(found, tuple) else items
    return found


def _is_usual(value: Tensor) -> bool:
    plain = type(value) is Tensor and value.layout is torch.strided
    return plain and not value.is_quantized and value.numel() <= _MOST


@contextmanager
def _apart() -> Generator[None]:
    """Let nothing that watches operators see them."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


def _is_same(one: Any, other: Any) -> bool:
    if type(one) is not type(other) or one.shape != other.shape:
        return False
    if not isinstance(one, Tensor):
        return one.dtype == other.dtype and bool(((one == other) | (one != one)).all())
    if one.is_meta or other.is_meta or torch._C._is_tracing():
        return one.dtype.is_floating_point == other.dtype.is_floating_point
    with _apart():
        first, second = one.to(other), other
        if one.dtype.itemsize < other.dtype.itemsize:
            first, second = one, other.to(one)
        return bool(((first == second) | ((first != first) & (second != second))).all())
