"""Tensors of a copy that are its own: clones of those that it shares with the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any, cast

import torch
from torch import nn

from refold.graph.copies.held import ATOMS, TABLES, byte_span, held_values, is_filled, storage_key
from refold.graph.copies.modules import all_modules
from refold.graph.copies.skeleton import skeleton
from refold.graph.threads import outside_modes


def duplicate(module: nn.Module) -> nn.Module:
    """Return a copy of `module` that shares nothing with it: whatever runs on it stays with it.

    Raises:
        InputError: when an attribute of the model cannot be copied or shared.

    Examples:
        >>> net = nn.Linear(2, 2)
        >>> duplicate(net).weight.data_ptr() == net.weight.data_ptr()
        False
    """
    with outside_modes():
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


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    return (value for value in held_values(module) if isinstance(value, torch.Tensor))


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
