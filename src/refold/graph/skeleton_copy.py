"""Copy the structure of a model, module by module.

`copy.deepcopy` sends every attribute of every module through its general machinery, although
nearly all of them are numbers, names and empty tables. What has a way of its own to be copied
still goes through it. Functions, which `copy.deepcopy` shares, are copied where they are bound to
what is copied: a forward that was replaced on a layer runs on the layer's copy.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import nn

from refold.graph.regenerate import is_generated

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values need no copy."""

TABLES = frozenset({dict, OrderedDict})
"""Types of the tables that a module keeps."""

INSIDE = -1
"""Where a memo, whose other keys are ids, keeps the ids of all modules of the tree."""

_GROUPS = frozenset({tuple, list, set})
_CALLABLES = (FunctionType, MethodType, partial)

_OWN_WAYS = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__", "__slots__")


def copy_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return what `copy.deepcopy(module, memo)` returns.

    Args:
        module: any module.
        memo: by id, objects that are shared, and the copies of those met already.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> copied = copy_module(net, {id(p): p for p in net.parameters()})
        >>> copied[0] is net[0], copied[0].weight is net[0].weight
        (False, True)
    """
    known = memo.get(id(module))
    if known is not None:
        return known
    cls = type(module)
    if not _is_plain(cls):
        return copy.deepcopy(module, memo)
    made = cls.__new__(cls)
    memo[id(module)] = made
    state = module.__getstate__()
    memo.setdefault(id(memo), []).append(state)  # kept alive: ids must stay those of what was met
    made.__setstate__({name: _value(value, memo) for name, value in state.items()})
    return made


def _is_plain(cls: type[nn.Module]) -> bool:
    """Return whether a class is copied by its state alone, as Python does by default."""
    default = cls.__reduce_ex__ is object.__reduce_ex__ and cls.__reduce__ is object.__reduce__
    return (default or is_generated(cls)) and not any(hasattr(cls, name) for name in _OWN_WAYS)


def _table(table: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    made = type(table)()
    memo[id(table)] = made
    for name, value in table.items():
        made[name] = _value(value, memo)
    return made


def _value(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in ATOMS:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if type(value) in TABLES and (not value or all(type(key) in ATOMS for key in value)):
        return _table(value, memo)
    if type(value) in _GROUPS and all(type(item) in ATOMS for item in value):
        return memo.setdefault(id(value), value if type(value) is tuple else value.copy())
    if isinstance(value, nn.Module):
        return copy_module(value, memo)
    if type(value) in _CALLABLES:
        return _callable(value, memo)
    return copy.deepcopy(value, memo)


# functions


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


def _callable(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, MethodType):
        return MethodType(_value(value.__func__, memo), _value(value.__self__, memo))
    if isinstance(value, partial):
        bound = cast("partial[Any]", value)
        args = [_bound(item, memo) for item in bound.args]
        kwargs = {key: _bound(item, memo) for key, item in bound.keywords.items()}
        made: Any = partial(_bound(bound.func, memo), *args, **kwargs)
        made.__dict__.update({key: _bound(item, memo) for key, item in vars(bound).items()})
        return memo.setdefault(id(value), made)
    return _function(value, memo) if _reaches_out(value, memo) else value


def _reaches_out(function: FunctionType, memo: dict[int, Any]) -> bool:
    return bool(function.__closure__) or any(_reaches(v, memo, 0) for v in bound_values(function))


def _function(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """Return the function with variables of its own, those of the model bound to the copy."""
    cells = function.__closure__ or ()
    fresh = tuple(memo.setdefault(id(cell), CellType()) for cell in cells)
    name, space = function.__name__, function.__globals__
    made = memo[id(function)] = FunctionType(function.__code__, space, name, None, fresh)
    for old, new in zip(cells, fresh, strict=True):
        if is_filled(old) and not is_filled(new):
            new.cell_contents = _bound(old.cell_contents, memo)
    made.__defaults__ = _bound(function.__defaults__, memo)
    made.__kwdefaults__ = _bound(function.__kwdefaults__, memo)
    made.__dict__.update({key: _bound(item, memo) for key, item in vars(function).items()})
    for field in ("__qualname__", "__module__", "__doc__", "__annotations__"):
        setattr(made, field, getattr(function, field))
    return made


def _bound(value: Any, memo: dict[int, Any]) -> Any:
    """Return the copy of what belongs to the model; everything else is shared."""
    return _value(value, memo) if _reaches(value, memo, 0) else value


def _reaches(value: Any, memo: dict[int, Any], depth: int) -> bool:
    if isinstance(value, nn.Module):
        return id(value) in memo.get(INSIDE, ())
    if isinstance(value, torch.Tensor):
        return id(value) in memo
    if depth > 6:
        return False
    if type(value) in _CALLABLES:
        return any(_reaches(item, memo, depth + 1) for item in bound_values(value))
    if isinstance(value, list | tuple | set):
        return any(_reaches(item, memo, depth + 1) for item in cast("list[Any]", value))
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).values()
        return any(_reaches(item, memo, depth + 1) for item in items)
    return False
