"""Copy the structure of a model, module by module.

`copy.deepcopy` sends every attribute of every module through its general machinery, although
nearly all of them are numbers, names and empty tables. What has a way of its own to be copied
still goes through it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values need no copy."""

TABLES = frozenset({dict, OrderedDict})
"""Types of the tables that a module keeps."""

_GROUPS = frozenset({tuple, list, set})

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
    return default and not any(hasattr(cls, name) for name in _OWN_WAYS)


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
    return copy_module(value, memo) if isinstance(value, nn.Module) else copy.deepcopy(value, memo)
