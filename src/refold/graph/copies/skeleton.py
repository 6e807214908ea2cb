"""Structural copies of models: modules are new, tensors are shared until they are owned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from operator import is_
from types import CellType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import nn

from refold.errors import InputError, one_line
from refold.graph.copies.held import (
    ATOMS,
    CALLABLES,
    SHARED_KINDS,
    TABLES,
    bound_values,
    held_values,
    is_filled,
)
from refold.graph.copies.modules import all_modules, is_generated

INSIDE = -1
"""Where a memo, whose other keys are ids, keeps the ids of all modules of the tree."""

PLAIN = -2
"""Where a memo keeps which classes are copied by their state alone."""

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
    told: dict[type, bool] = memo.setdefault(PLAIN, {})
    if cls not in told:
        told[cls] = _is_plain(cls)
    if not told[cls]:
        _fill(memo)
        return _in_mode_of(module, copy.deepcopy(module, memo))
    made = cls.__new__(cls)
    memo[id(module)] = made
    if cls.__getstate__ is _GETSTATE and cls.__setstate__ is _SETSTATE:
        _copy_into(made.__dict__, module.__dict__, memo)
        made.__dict__.pop("_compiled_call_impl", None)  # as torch does
        return made
    state = module.__getstate__()
    memo.setdefault(id(memo), []).append(state)  # kept alive: ids must stay those of what was met
    attributes: dict[str, Any] = {}
    _copy_into(attributes, state, memo)
    made.__setstate__(attributes)
    return made


def _copy_into(made: dict[str, Any], state: dict[str, Any], memo: dict[int, Any]) -> None:
    """Copy a module's attributes; most are plain, or tables without entries."""
    made.update(state)
    for name, value in state.items():
        kind = type(value)
        if kind in ATOMS:
            continue
        if kind in _EMPTY and not value and name in _OWN_TABLES:
            made[name] = kind()
        else:
            made[name] = _value(value, memo)


_GETSTATE, _SETSTATE = nn.Module.__getstate__, nn.Module.__setstate__


_EMPTY = frozenset({*TABLES, set})
_OWN_TABLES = frozenset(
    name for name, value in nn.Module().__dict__.items() if type(value) in _EMPTY
)


def _in_mode_of(module: nn.Module, made: nn.Module) -> nn.Module:
    """Put a copy that a class has made in its own way into the mode of the original.

    torchvision's feature extractors come out of a copy in training mode, with another graph.
    """
    if made.training != module.training:
        made.train(module.training)
        modes = {path: part.training for path, part in module.named_modules()}
        for path, part in made.named_modules():
            part.training = modes.get(path, part.training)
    return made


def _is_plain(cls: type[nn.Module]) -> bool:
    """Return whether a class is copied by its state alone, as Python does by default."""
    default = cls.__reduce_ex__ is object.__reduce_ex__ and cls.__reduce__ is object.__reduce__
    kind = cls.__mro__[1] if is_generated(cls) else cls
    return (default or kind is not cls) and not any(hasattr(kind, name) for name in _OWN_WAYS)


class _Sharing(dict[int, Any]):
    """A memo that shares the tensors of a module tree, found when they are needed.

    Generators are not shared: a draw of the copy is none of the original.

    Most copies meet them one by one; only code of others (`__deepcopy__`) has to be told of all.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self._root = root

    def fill(self) -> None:
        """Note all of them, and the ids of the modules."""
        if INSIDE not in self:
            inside = all_modules(self._root)
            self[INSIDE] = frozenset(map(id, inside))
            for child in inside:
                for value in held_values(child):
                    own = isinstance(value, torch.Generator)
                    self.setdefault(id(value), value.clone_state() if own else value)


def _fill(memo: dict[int, Any]) -> None:
    if isinstance(memo, _Sharing):
        memo.fill()


def _table(table: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    made = memo[id(table)] = type(table)()
    for name, value in table.items():
        made[name] = _value(value, memo)
    return made


def _list(items: list[Any], memo: dict[int, Any]) -> list[Any]:
    made = memo[id(items)] = list[Any]()
    made.extend([_value(item, memo) for item in items])
    return made


def _tuple(items: tuple[Any, ...], memo: dict[int, Any]) -> tuple[Any, ...]:
    """Return the tuple itself where nothing in it is copied, as `copy.deepcopy` does."""
    if ATOMS.issuperset(map(type, items)):
        return items
    made = [_value(item, memo) for item in items]
    is_same = all(map(is_, made, items))
    return memo.setdefault(id(items), items if is_same else tuple(made))


def _set(items: set[Any], memo: dict[int, Any]) -> set[Any]:
    if not ATOMS.issuperset(map(type, items)):
        return _other(items, memo)
    return memo.setdefault(id(items), items.copy())


def _itself(value: Any, memo: dict[int, Any]) -> Any:
    return value


_COPIERS: dict[type, Callable[[Any, dict[int, Any]], Any]] = {
    **dict.fromkeys((type, torch.dtype, torch.device, torch.Size), _itself),
    list: _list,
    tuple: _tuple,
    set: _set,
}


def _value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind is torch.Generator:
        return memo.setdefault(id(value), value.clone_state())
    if kind in ATOMS or (kind in SHARED_KINDS and isinstance(memo, _Sharing)):
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind in TABLES and (not value or ATOMS.issuperset(map(type, value))):
        return _table(value, memo)
    copier = _COPIERS.get(kind)
    if copier is not None:
        return copier(value, memo)
    return copy_module(value, memo) if isinstance(value, nn.Module) else _other(value, memo)


def _other(value: Any, memo: dict[int, Any]) -> Any:
    """Return what Python's own copy gives, which has to be told of every tensor beforehand."""
    _fill(memo)
    if id(value) in memo:  # a tensor of another class
        return value
    if type(value) in CALLABLES:
        return _callable(value, memo)
    return copy.deepcopy(value, memo)


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
    if type(value) in CALLABLES:
        return any(_reaches(item, memo, depth + 1) for item in bound_values(value))
    if isinstance(value, list | tuple | set):
        return any(_reaches(item, memo, depth + 1) for item in cast("list[Any]", value))
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).values()
        return any(_reaches(item, memo, depth + 1) for item in items)
    return False


_MODULE_TABLES = frozenset({"_parameters", "_buffers", "_modules"})


def skeleton(module: nn.Module) -> nn.Module:
    """Return a structural copy of `module` that shares every tensor with it.

    Containers, attributes, hooks and aliases are copied; parameters, buffers, tensors kept in plain
    attributes and random generators are the very same objects.

    Raises:
        InputError: when an attribute of the model cannot be copied or shared.

    Examples:
        >>> net = nn.Linear(2, 2)
        >>> copied = skeleton(net)
        >>> copied is net, copied.weight is net.weight
        (False, True)
    """
    try:
        return copy_module(module, _Sharing(module))
    except Exception:  # any third-party __deepcopy__ may fail in its own way
        memo = _Sharing(module)
        memo.fill()
        _share_uncopyable(module, memo)
    try:
        return copy_module(module, memo)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} cannot be copied ({one_line(error)}); "
            "remove the attribute that cannot be copied, or pass inplace=True"
        ) from error


def _share_uncopyable(module: nn.Module, memo: dict[int, Any]) -> None:
    """Share the plain attributes that cannot be copied alone (locks, handles, process groups)."""
    submodules = {id(child): child for child in module.modules()}
    for child in module.modules():
        for name, value in child.__dict__.items():
            if name in _MODULE_TABLES or id(value) in memo:
                continue
            try:
                copy.deepcopy(value, {**memo, **submodules})
            except Exception:  # the reason does not matter: it is shared instead
                memo[id(value)] = value
