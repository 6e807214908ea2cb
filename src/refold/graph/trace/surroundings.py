"""What lies around a model that its code may change: globals, class attributes, closures, objects.

The code of a model runs while it is recorded and compared; a user's list of features is as long
afterwards as it was before.
"""

from __future__ import annotations

import dis
import functools
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, cast

import torch
from torch import nn

from refold.graph.copies.held import ATOMS, is_filled, same_value
from refold.graph.copies.modules import all_modules
from refold.graph.trace.code.names import functions_of, is_foreign, named_in, names_in

_MISSING = object()
_NO_OBJECTS = (type, ModuleType, FunctionType, nn.Module, torch.Tensor)
_DEEPEST = 3
_PLAIN = ATOMS | {dict, OrderedDict, list, tuple, set, torch.Tensor, nn.Parameter, torch.Size}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class _Binding:
    """What stands under a name: a global, an attribute of a class, a variable of a closure."""

    def __init__(self, name: str, owner: dict[str, Any] | type | CellType) -> None:
        self.name, self.owner = name, owner
        self.value = self.now()

    def changed(self) -> list[tuple[str, Any]]:
        """Return the name and what stands there now, if that is something else."""
        now = self.now()
        is_same = now is self.value or same_value(self.value, now)
        return [] if is_same else [(self.name, now)]

    def now(self) -> Any:
        """Return what stands there now."""
        if isinstance(self.owner, CellType):
            return _content(self.owner)
        table = vars(self.owner) if isinstance(self.owner, type) else self.owner
        return table.get(self.name, _MISSING)

    def restore(self) -> None:
        """Put back what was there; what was new goes."""
        if self.now() is self.value:
            return
        is_new = self.value is _MISSING
        if isinstance(self.owner, dict):
            self.owner.update({self.name: self.value})
            if is_new:
                del self.owner[self.name]
        elif isinstance(self.owner, CellType):
            self.owner.cell_contents = None if is_new else self.value
        elif is_new:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.value)


class _Content:
    """What a list, a dict, a set or an object of the user's own holds.

    Args:
        name: what code calls it; None for the attributes of an object.
        held: the container, or the table of the attributes.
    """

    def __init__(self, name: str | None, held: Any) -> None:
        self.name, self.held, self.value = name, held, held.copy()

    def changed(self) -> list[tuple[str, Any]]:
        """Return the name of what holds something else, and what is there now."""
        if same_value(self.value, self.held):
            return []
        if self.name is not None:
            return [(self.name, self.held)]
        keys = self.held.keys() | self.value.keys()
        before, now = (
            [table.get(key, _MISSING) for key in keys] for table in (self.value, self.held)
        )
        pairs = zip(keys, before, now, strict=True)
        return [(key, new) for key, old, new in pairs if not same_value(old, new)]

    def restore(self) -> None:
        """Let it hold what it held."""
        if self.name is None:
            for key, _ in self.changed():
                self.held.pop(key, None)
                self.held.update({key: self.value[key]} if key in self.value else {})
        elif not same_value(self.value, self.held):
            self.held.clear()
            is_list = isinstance(self.held, list | deque)
            (self.held.extend if is_list else self.held.update)(self.value)


class Surroundings:
    """What code of a model may change outside it, at one moment.

    Examples:
        >>> seen = []
        >>> net = nn.ReLU()
        >>> hook = functools.partial(lambda seen, *call: seen.append(1), seen)
        >>> handle = net.register_forward_hook(hook)
        >>> around = Surroundings(net)
        >>> _ = net(torch.zeros(1))
        >>> around.restore()
        >>> seen
        []
    """

    def __init__(self, root: nn.Module) -> None:
        self._known, self.modules = set[int](), all_modules(root)
        self._places = [*self._around_code()]
        self._of_hooks = [*self._around_hooks()]

    def changed(self) -> list[tuple[str, Any]]:
        """Return the names of what code of the model has changed, with what is there now."""
        return [change for place in self._places for change in place.changed()]

    def restore(self) -> None:
        """Put everything back, what hooks have changed as well."""
        for place in (*self._places, *self._of_hooks):
            place.restore()

    def _around_code(self) -> Iterator[_Binding | _Content]:
        for kind in {type(module) for module in self.modules}:
            for base in kind.__mro__:
                yield from () if is_foreign(base) else self._of_class(base)
            for function in functions_of(kind):
                yield from self._of_function(function)
        for module in self.modules:
            for value in module.__dict__.values():
                if type(value) not in _PLAIN:  # nearly all are
                    yield from self._object(value, 1)

    def _around_hooks(self) -> Iterator[_Binding | _Content]:
        for table in self.tables():
            for hook in table.values():
                yield from self._of_hook(hook)

    def tables(self) -> Iterator[dict[Any, Any]]:
        """Yield the tables of the model's hooks."""
        for module in self.modules:
            own = module.__dict__
            for name in _HOOKS:
                if (table := own.get(name)) is not None:
                    yield table

    def _of_class(self, kind: type) -> Iterator[_Binding | _Content]:
        for name, value in vars(kind).items() if self._is_new(kind) else ():
            if type(value) in ATOMS and not name.startswith("__"):
                yield _Binding(name, kind)
            yield from self._within(name, value, 0)

    def _of_function(self, function: FunctionType) -> Iterator[_Binding | _Content]:
        if not self._is_new(function):
            return
        rebound = _rebound(function.__code__)
        if "globals" in names_in(function.__code__):
            yield _Content(None, function.__globals__)
        for name, table, value in named_in(function):
            if name in rebound:
                yield _Binding(name, table)
            if isinstance(value, type) and not is_foreign(value):
                yield from self._of_class(value)
            yield from self._within(name, value, 0)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for name, cell in cells:
            if name in rebound:
                yield _Binding(name, cell)
            yield from self._within(name, _content(cell), 0)
        given = function.__defaults__ or ()
        code = function.__code__
        for name, value in zip(
            code.co_varnames[code.co_argcount - len(given) :], given, strict=False
        ):
            yield from self._within(name, value, 0)

    def _of_hook(self, hook: Any) -> Iterator[_Binding | _Content]:
        """Look around a hook: a function, a method of an object, an object that is called."""
        plain = getattr(hook, "func", hook)  # of a functools.partial
        function = getattr(plain, "__func__", plain)
        if isinstance(function, FunctionType) and not is_foreign(function):
            yield from self._of_function(function)
        for one in (hook, getattr(plain, "__self__", None), *getattr(hook, "args", ())):
            yield from self._within("hook", one, 1)

    def _within(self, name: str, value: Any, depth: int) -> Iterator[_Binding | _Content]:
        if isinstance(value, list | dict | set | deque):
            if self._is_new(value):
                yield _Content(name, value)
        else:
            yield from self._object(value, depth)

    def _object(self, value: Any, depth: int) -> Iterator[_Binding | _Content]:
        """Look into an object of the user's own, and into those that it holds."""
        table = getattr(value, "__dict__", None) if type(value) not in ATOMS else None
        is_own = isinstance(table, dict) and not isinstance(value, _NO_OBJECTS)
        if not is_own or depth > _DEEPEST or is_foreign(type(value)) or not self._is_new(value):
            return
        yield _Content(None, table)
        for key, held in list(cast("dict[str, Any]", table).items()):
            yield from self._within(key, held, depth + 1)

    def _is_new(self, value: Any) -> bool:
        is_new = id(value) not in self._known
        self._known.add(id(value))
        return is_new


@contextmanager
def surroundings_kept(root: nn.Module) -> Generator[Surroundings]:
    """Put back what lies around a model, and its hooks, while a copy of it runs.

    A hook that removes itself (`handle.remove()`) knows the model that it was registered on.

    Examples:
        >>> net = nn.ReLU()
        >>> handle = net.register_forward_hook(print)
        >>> with surroundings_kept(net):
        ...     handle.remove()
        >>> len(net._forward_hooks)
        1
    """
    around = Surroundings(root)
    tables = [(table, dict(table)) for table in around.tables() if table]
    try:
        yield around
    finally:
        around.restore()
        for table, before in tables:
            if table.keys() != before.keys():
                table.clear()
                table.update(before)


@functools.lru_cache(maxsize=4096)
def _rebound(code: CodeType) -> frozenset[str]:
    """Return the names of globals and of a closure that code binds anew."""
    found = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF")
    }
    inner = (_rebound(part) for part in code.co_consts if isinstance(part, CodeType))
    return frozenset(found).union(*inner)


def _content(cell: CellType) -> Any:
    return cell.cell_contents if is_filled(cell) else _MISSING
