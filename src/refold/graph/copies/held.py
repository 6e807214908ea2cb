"""What a module itself holds: tensors and generators, in tables, plain attributes and functions."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import nn

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values need no copy."""

TABLES = frozenset({dict, OrderedDict})
"""Types of the tables that a module keeps."""

CALLABLES = (FunctionType, MethodType, partial)
SHARED = (torch.Tensor, torch.Generator)
SHARED_KINDS = frozenset({*SHARED, nn.Parameter})
_NESTS = frozenset({dict, OrderedDict, list, tuple, set})


def bound_values(function: Any) -> Iterator[Any]:
    """Yield what a function, bound method or partial brings along besides its code.

    Examples:
        >>> list(bound_values(partial(max, 1, key=abs))) == [max, 1, abs]
        True
    """
    if isinstance(function, MethodType):
        yield function.__self__
        yield function.__func__
    elif isinstance(function, partial):
        bound = cast("partial[Any]", function)
        yield from (bound.func, *bound.args, *bound.keywords.values())
    elif isinstance(function, FunctionType):
        yield from (cell.cell_contents for cell in function.__closure__ or () if is_filled(cell))
        yield from function.__defaults__ or ()
        yield from (function.__kwdefaults__ or {}).values()


def is_filled(cell: CellType) -> bool:
    """Say whether a variable of a function has a value yet.

    Examples:
        >>> is_filled(CellType(1)), is_filled(CellType())
        (True, False)
    """
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def held_values(module: nn.Module) -> list[Any]:
    """Return the tensors and generators that a module itself holds, plain containers included."""
    found: list[Any] = []
    for name, value in module.__dict__.items():
        kind = type(value)  # asking about tensors is slow, and most attributes are plain or empty
        if kind in ATOMS or name == "_modules":
            continue
        if kind not in TABLES:
            _share(value, 0, found)
        elif value:
            for item in value.values():
                _share(item, 1, found)
    return found


def _share(value: Any, depth: int, found: list[Any]) -> None:
    """Add the tensors and generators in a value to those found."""
    kind = type(value)
    if kind in ATOMS:
        return
    if kind in SHARED_KINDS or (kind not in _NESTS and isinstance(value, SHARED)):
        found.append(value)
    elif depth < 6:
        for item in _items(value):
            _share(item, depth + 1, found)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return cast("dict[Any, Any]", value).values()
    if isinstance(value, list | tuple):
        return cast("list[Any]", value)
    return bound_values(value) if type(value) in CALLABLES or callable(value) else ()


def held_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that a module itself holds, each under the name of its attribute.

    Examples:
        >>> [name for name, _ in held_tensors(nn.Linear(1, 1))]
        ['weight', 'bias']
    """
    for name, value in module.__dict__.items():
        kind = type(value)
        if kind in ATOMS or (kind in TABLES and not value):
            continue
        if name in ("_parameters", "_buffers"):
            for key, tensor in cast("dict[str, Any]", value).items():
                if isinstance(tensor, torch.Tensor):
                    yield key, tensor
        elif name != "_modules":
            found: list[Any] = []
            _share(value, 0, found)
            yield from ((name, t) for t in found if isinstance(t, torch.Tensor))


def storage_key(tensor: torch.Tensor) -> int:
    """Return a number that two tensors share exactly when they share their storage.

    Examples:
        >>> base = torch.zeros(4)
        >>> storage_key(base) == storage_key(base[1:]), storage_key(base) == storage_key(base + 1)
        (True, False)
    """
    try:
        return cast(int, tensor.untyped_storage()._cdata)  # pyright: ignore[reportPrivateUsage]
    except (NotImplementedError, RuntimeError):  # sparse tensors and wrappers have no storage
        return -id(tensor)


def byte_span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first and one past the last byte of its storage that a tensor touches.

    Examples:
        >>> byte_span(torch.zeros(4)[1:3])
        (4, 12)
    """
    if tensor.layout is not torch.strided:
        return 0, 1
    size, start = tensor.element_size(), int(tensor.storage_offset())
    if tensor.numel() == 0:
        return start * size, start * size
    last = sum((n - 1) * int(step) for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start * size, (start + last + 1) * size


def same_value(old: Any, new: Any) -> bool:
    """Say whether an attribute is the same object, an equal plain value, or holds the same items.

    Examples:
        >>> same_value(1, 1), same_value(1, True), same_value([1], [1])
        (True, False, True)
    """
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if type(old) in ATOMS:
        return bool(old == new)
    if isinstance(old, dict):
        if not old and not new:
            return True
        first, second = cast("dict[Any, Any]", old), cast("dict[Any, Any]", new)
        return list(first) == list(second) and all(map(_same_item, first.values(), second.values()))
    if isinstance(old, list | tuple | deque):
        items, others = cast("list[Any]", old), cast("list[Any]", new)
        return len(items) == len(others) and all(map(_same_item, items, others))
    return isinstance(old, set) and old == new


def _same_item(old: Any, new: Any) -> bool:
    return old is new or (type(old) is type(new) and type(old) in ATOMS and bool(old == new))
