"""What running a model's code would leave behind: kept from happening, or noticed and undone.

Structural copies share their tensors with the caller's model, whose numbers stay as they are.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from refold.graph.copies.held import held_tensors, same_value, storage_key
from refold.graph.copies.modules import all_modules, modules_by_path, stored_tensors
from refold.graph.trace.surroundings import Surroundings
from refold.torch_versions import DispatchMode

_MISSING = object()
_CONTAINERS = frozenset({list, dict, set, deque, OrderedDict, Counter, defaultdict})


@dataclass(eq=False)
class Changes:
    """What code of a model was seen to change, of all its traces together.

    Args:
        written: the stored tensors that change in place, by storage, each with the reason.
        assigned: by id, the modules whose attributes code outside them sets, with the reason.
        read: the stored tensors whose numbers code asks for, by storage, each with its path.
        around: what the code may change outside the model.
    """

    written: dict[int, str] = field(default_factory=dict[int, str])
    assigned: dict[int, str] = field(default_factory=dict[int, str])
    read: dict[int, str] = field(default_factory=dict[int, str])
    around: Surroundings | None = None


class StateChangeError(Exception):
    """Code of the model changes what the model keeps; the text says what, for a refusal."""


class Attributes:
    """The plain attributes of a module tree at one moment, containers one level deep.

    Examples:
        >>> net = nn.ReLU()
        >>> before = Attributes(net)
        >>> net.calls = 1
        >>> [name for _, name in before.restore()], hasattr(net, "calls")
        (['calls'], False)
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        found = modules_by_path(root)
        self.modules = [module for _, module in found]
        self.paths = {id(module): path for path, module in found}
        self._before = [_Before(module) for module in self.modules]

    @cached_property
    def stored_paths(self) -> dict[int, str]:
        """The paths of parameters and buffers, by id."""
        return {id(tensor): path for path, tensor in stored_tensors(self.root)}

    def changed(self) -> list[tuple[nn.Module, str]]:
        """Return what is another one now."""
        return [(kept.module, name) for kept in self._before for name in kept.changed()]

    def restore(self) -> list[tuple[nn.Module, str]]:
        """Put everything back, new attributes gone; return what was another one."""
        return [(kept.module, name) for kept in self._before for name in kept.restore()]


class _Before:
    """The attributes of one module: the objects, and copies of the containers that hold anything.

    Nearly every module is as it was, and nearly every container of one is empty: to see that must
    take no time.
    """

    __slots__ = ("empty", "held", "module", "names", "values")

    def __init__(self, module: nn.Module) -> None:
        self.module, self.values = module, module.__dict__.copy()
        self.names = [*self.values]
        containers = [value for value in self.values.values() if type(value) in _CONTAINERS]
        self.empty = [value for value in containers if not value]
        self.held = dict[str, Any]()
        if len(self.empty) < len(containers):
            for name, value in self.values.items():
                if type(value) in _CONTAINERS and value:
                    self.held[name] = value.copy()

    def changed(self) -> list[str]:
        """Return the names of the attributes that are other ones now."""
        now = self.module.__dict__
        is_same = (
            [*now] == self.names
            and all(map(is_, now.values(), self.values.values()))
            and not any(self.empty)
            and (not self.held or all(_are_same(v, now[name]) for name, v in self.held.items()))
        )
        return [] if is_same else [*self._differing(now)]

    def restore(self) -> list[str]:
        """Put them back; return the names of those that were others."""
        found = self.changed()
        for name in found:
            if name in self.values:
                self.module.__dict__[name] = self.before(name)
            else:
                del self.module.__dict__[name]
        if found:  # the copies of containers are what the module has now
            _Before.__init__(self, self.module)
        return found

    def _differing(self, now: dict[str, Any]) -> Iterator[str]:
        for name, value in now.items():
            is_plain = type(value) not in _CONTAINERS
            if is_plain and value is self.values.get(name, _MISSING):
                continue
            if not same_value(self.before(name), value):
                yield name
        yield from self.values.keys() - now.keys()

    def before(self, name: str) -> Any:
        """Return what an attribute held, a container as a copy."""
        value = self.held.get(name, self.values.get(name, _MISSING))
        if type(value) in _CONTAINERS and value and any(value is one for one in self.empty):
            value = value.copy()
            value.clear()
        return value


def _are_same(copied: Any, now: Any) -> bool:
    """Say whether a container holds the very objects that its copy holds, in the same order."""
    if len(copied) != len(now) or not all(map(is_, copied, now)):
        return False
    return not isinstance(copied, dict) or all(map(is_, copied.values(), now.values()))


@contextmanager
def untouched(root: nn.Module, storages: frozenset[int] | None = None) -> Generator[None]:
    """Raise where code changes a tensor that `root` keeps, before the change happens.

    Args:
        root: the model.
        storages: guard these alone, and only against operators; None guards all.

    Raises:
        StateChangeError: then; it names the tensor.

    Examples:
        >>> net = nn.BatchNorm1d(1)
        >>> with untouched(net):
        ...     net.running_mean.add_(1)
        Traceback (most recent call last):
        refold.graph.trace.state.StateChangeError: its code changes running_mean in place
    """
    kept = _Kept(root, storages)
    with nullcontext() if storages is not None else _NoAssignment(kept), _NoWrite(kept):
        yield


class _Kept:
    """The stored tensors of a model by storage, looked up once, when something is written."""

    def __init__(self, root: nn.Module, storages: frozenset[int] | None) -> None:
        self.root, self.storages = root, storages

    def refuse(self, tensor: Tensor, what: str) -> None:
        key = storage_key(tensor)
        if self.storages is not None and key not in self.storages:
            return
        if key in self._all:
            raise StateChangeError(f"its code changes {self._name(key)} {what}")

    @cached_property
    def _all(self) -> frozenset[int]:
        held = (tensor for m in all_modules(self.root) for _, tensor in held_tensors(m))
        return frozenset(map(storage_key, held))

    def _name(self, key: int) -> str:
        return next(name for found, name in self._found() if found == key)

    def _found(self) -> Iterator[tuple[int, str]]:
        for path, module in modules_by_path(self.root):
            for name, held in held_tensors(module):
                yield storage_key(held), f"{path}.{name}" if path else name


class _NoWrite(DispatchMode):
    """Refuses operators that write to a stored tensor."""

    def __init__(self, kept: _Kept) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func._schema.is_mutable:
            for tensor in written_arguments(func, args, kwargs or {}):
                self.kept.refuse(tensor, "in place")
        return func(*args, **(kwargs or {}))


def written_arguments(
    op: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[Tensor]:
    """Yield the tensors that a call of an operator writes to.

    Examples:
        >>> x = torch.zeros(1)
        >>> [t is x for t in written_arguments(torch.ops.aten.add_.Tensor, (x, 1), {})]
        [True]
    """
    for index, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor))


class _NoAssignment(TorchFunctionMode):
    """Refuses `tensor.data = …` and its like, which no operator sees."""

    def __init__(self, kept: _Kept) -> None:
        super().__init__()
        self.kept = kept

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _ASSIGNMENTS and isinstance(args[0], Tensor):
            self.kept.refuse(args[0], "by assignment")
        return func(*args, **(kwargs or {}))


_FIELDS = ("data", "grad", "requires_grad")
_ASSIGNMENTS = frozenset(
    [getattr(Tensor, name).__set__ for name in _FIELDS] + [Tensor.requires_grad_]
)
