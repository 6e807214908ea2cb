"""Structural copies of models: modules are new, tensors are shared until they are owned."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import is_
from types import CellType, FunctionType, MethodType
from typing import Any, cast

import torch
from torch import nn

from refold.errors import InputError, one_line
from refold.graph.copies.modules import all_modules, is_generated

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose values need no copy."""

TABLES = frozenset({dict, OrderedDict})
"""Types of the tables that a module keeps."""

INSIDE = -1
"""Where a memo, whose other keys are ids, keeps the ids of all modules of the tree."""

_CALLABLES = (FunctionType, MethodType, partial)
_TENSORS = (torch.Tensor, torch.Generator)
_HELD = frozenset({*_TENSORS, nn.Parameter})
_NESTS = frozenset({dict, OrderedDict, list, tuple, set})

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
        if kind in TABLES and not value and name in _OWN_TABLES:
            made[name] = kind()
        else:
            made[name] = _value(value, memo)


_GETSTATE, _SETSTATE = nn.Module.__getstate__, nn.Module.__setstate__
_OWN_TABLES = frozenset(
    name for name, value in nn.Module().__dict__.items() if type(value) in TABLES
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
    return (default or is_generated(cls)) and not any(hasattr(cls, name) for name in _OWN_WAYS)


class _Sharing(dict[int, Any]):
    """A memo that shares the tensors and generators of a module tree, found when they are needed.

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
                self.update((id(value), value) for value in _held(child))


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
    if kind in ATOMS or (kind in _HELD and isinstance(memo, _Sharing)):
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


_WRAPPERS = frozenset(
    {"DataParallel", "DistributedDataParallel", "AveragedModel", "FullyShardedDataParallel"}
)
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


def _held(module: nn.Module) -> list[Any]:
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
    if kind in _HELD or (kind not in _NESTS and isinstance(value, _TENSORS)):
        found.append(value)
    elif depth < 6:
        for item in _items(value):
            _share(item, depth + 1, found)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return cast("dict[Any, Any]", value).values()
    if isinstance(value, list | tuple):
        return cast("list[Any]", value)
    return bound_values(value) if type(value) in _CALLABLES or callable(value) else ()


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


def unwrap(module: nn.Module) -> nn.Module:
    """Return the network inside parallel, compiled and averaged wrappers.

    Looks through DataParallel, DistributedDataParallel, `torch.compile`, `AveragedModel` and any
    wrapper whose only child is `module` and that holds no parameter of its own (timm's ModelEma).

    Examples:
        >>> unwrap(nn.DataParallel(nn.Sequential(nn.ReLU())))
        Sequential(
          (0): ReLU()
        )
    """
    while (inner := _inner(module)) is not None:
        module = inner
    return module


def _inner(module: nn.Module) -> nn.Module | None:
    children = dict(module.named_children())
    if set(children) == {"_orig_mod"}:
        return children["_orig_mod"]
    holds_nothing = not any(True for _ in module.parameters(recurse=False))
    if set(children) == {"module"} and holds_nothing and not _is_container(module):
        return children["module"] if _passes_through(module) else None
    return None


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _passes_through(module: nn.Module) -> bool:
    """Wrappers are known by name, or hold a network without a forward of their own.

    A network that merely calls its one child `module` is not a wrapper: its forward may do more.
    """
    if type(module).forward is nn.Module.forward:
        return "forward" not in module.__dict__
    return any(
        kind.__name__ in _WRAPPERS or kind.__name__.startswith("ModelEma")
        for kind in type(module).__mro__
    )


def duplicate(module: nn.Module) -> nn.Module:
    """Return a copy of `module` that shares nothing with it: whatever runs on it stays with it.

    Raises:
        InputError: when an attribute of the model cannot be copied or shared.

    Examples:
        >>> net = nn.Linear(2, 2)
        >>> duplicate(net).weight.data_ptr() == net.weight.data_ptr()
        False
    """
    copied = skeleton(module)
    own_tensors(copied, module)
    return copied


def own_tensors(module: nn.Module, source: nn.Module) -> int:
    """Clone the tensors of `module` that share storage with `source`; return the bytes copied.

    Ties inside `module` stay ties: one Parameter under two names stays one object, overlapping
    views of one storage still overlap. `requires_grad`, dtype, device, memory format, the Parameter
    subclass and its attributes are kept.

    Examples:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> copied = skeleton(net)
        >>> own_tensors(copied, net)
        16
        >>> bool((copied.weight == net.weight).all()), copied.weight is net.weight
        (True, False)
    """
    foreign = {storage_key(t) for m in all_modules(source) for t in _tensors(m)}
    shared: dict[int, torch.Tensor] = {}
    holders: list[nn.Module] = []
    for child in all_modules(module):
        found = {id(t): t for t in _tensors(child) if storage_key(t) in foreign}
        if found:
            shared.update(found)
            holders.append(child)
    if not shared:
        return 0
    clones, copied = _clone_all(list(shared.values()))
    for child in holders:
        _swap_tensors(child, clones)
    return copied


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


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    return (value for value in _held(module) if isinstance(value, torch.Tensor))


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


def _clone_all(tensors: list[torch.Tensor]) -> tuple[dict[int, torch.Tensor], int]:
    by_storage: dict[int, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_storage.setdefault(storage_key(tensor), []).append(tensor)
    clones: dict[int, torch.Tensor] = {}
    copied = 0
    for group in by_storage.values():
        for cluster in _overlapping(group):
            for tensor, data in zip(cluster, _clone_cluster(cluster), strict=True):
                clones[id(tensor)] = _like(tensor, data)
            copied += _extent_bytes(cluster)
    return clones, copied


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


def _overlapping(group: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Split tensors of one storage into clusters of overlapping views."""
    if len(group) == 1:
        return [group]
    clusters: list[list[torch.Tensor]] = []
    end = -1
    for tensor in sorted(group, key=byte_span):
        low, high = byte_span(tensor)
        if clusters and low < end:
            clusters[-1].append(tensor)
        else:
            clusters.append([tensor])
        end = max(end, high)
    return clusters


def _clone_cluster(cluster: list[torch.Tensor]) -> list[torch.Tensor]:
    one_view = len({(t.shape, t.stride(), t.storage_offset(), t.dtype) for t in cluster}) == 1
    if len(cluster) == 1 or one_view:
        data = cluster[0].detach().clone(memory_format=torch.preserve_format)
        return [data, *(data.view_as(data) for _ in cluster[1:])]
    storage = cluster[0].untyped_storage().clone()
    views: list[torch.Tensor] = []
    for tensor in cluster:
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        place = (storage, tensor.storage_offset(), tensor.shape, tensor.stride())
        views.append(empty.set_(*place))
    return views


def _extent_bytes(cluster: list[torch.Tensor]) -> int:
    return max(tensor.numel() * tensor.element_size() for tensor in cluster)


def _like(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """Give `data` the class, attributes and `requires_grad` of `tensor`."""
    requires_grad = tensor.requires_grad and tensor.is_leaf
    if isinstance(tensor, nn.Parameter):
        make = cast(Callable[..., torch.Tensor], torch.Tensor._make_subclass)  # pyright: ignore
        fresh = make(type(tensor), data, requires_grad) if type(data) is torch.Tensor else None
        fresh = nn.Parameter(data, requires_grad) if fresh is None else fresh
    else:
        fresh = data.requires_grad_(requires_grad) if requires_grad else data
    for name, value in vars(tensor).items():
        setattr(fresh, name, value)
    return fresh


def _swap_tensors(module: nn.Module, clones: dict[int, torch.Tensor]) -> None:
    for name, value in list(module.__dict__.items()):
        kind = type(value)
        is_empty = kind in TABLES and not value
        if kind not in ATOMS and not is_empty and name != "_modules":
            swapped = _swapped(value, clones, depth=0)
            if swapped is not value:
                module.__dict__[name] = swapped
    if isinstance(module, nn.RNNBase):  # it caches its parameters in a list and in weak references
        module._init_flat_weights()  # pyright: ignore[reportPrivateUsage]


def _swap_variables(function: Any, clones: dict[int, torch.Tensor], depth: int) -> None:
    """Swap tensors in what a function is bound to, which is its own: the copy made it."""
    if isinstance(function, MethodType):
        _swap_variables(function.__func__, clones, depth)
    elif type(function) is partial:
        old = cast("partial[Any]", function)
        state = (old.func, old.args, old.keywords, vars(old))
        cast(Any, function).__setstate__(_swapped(state, clones, depth + 1))
    elif isinstance(function, FunctionType):
        for cell in function.__closure__ or ():
            if is_filled(cell):
                cell.cell_contents = _swapped(cell.cell_contents, clones, depth + 1)


def _swapped(value: Any, clones: dict[int, torch.Tensor], depth: int) -> Any:
    if isinstance(value, torch.Tensor):
        return clones.get(id(value), value)
    if depth >= 6 or type(value) in ATOMS:
        return value
    if callable(value):
        _swap_variables(value, clones, depth)
    if isinstance(value, dict):
        table = cast("dict[Any, Any]", value)
        for key, item in list(table.items()):
            table[key] = _swapped(item, clones, depth + 1)
    elif isinstance(value, list):
        items = cast("list[Any]", value)
        items[:] = [_swapped(item, clones, depth + 1) for item in items]
    elif isinstance(value, tuple):
        old = cast("tuple[Any, ...]", value)
        new = [_swapped(item, clones, depth + 1) for item in old]
        if any(a is not b for a, b in zip(old, new, strict=True)):
            return cast(Any, type(old))(*new) if hasattr(old, "_fields") else tuple(new)
    return value
