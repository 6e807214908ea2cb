"""Watchers of every call of a module, and of what is done to attributes of a model's modules.

When a special method of `nn.Module` is replaced, Python visits every subclass; libraries define
thousands, and each time takes ten milliseconds. So calls are watched where `__call__` leads, at
`_call_impl`, and assignments in the classes of the model that is watched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from torch import nn

_CALL = nn.Module.__call__
_Method = Callable[..., Any]


@contextmanager
def watched_calls(modules: Iterable[nn.Module], watch: _Method) -> Generator[None]:
    """Let `watch` answer every call of a module, of one that is not among `modules`, too.

    Args:
        modules: of a model. What they have in place of `_call_impl` is called as well.
        watch: is given what calls the module, the module, its arguments, and those by name.

    Examples:
        >>> net = nn.Identity()
        >>> with watched_calls([net], lambda call, module, args, kwargs: -call(module, *args)):
        ...     net(3)
        -3
    """

    def watcher(below: _Method) -> _Method:
        def call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            return watch(below, module, args, kwargs)

        return call

    own = {type(module) for module in modules if _calls_by_itself(module)}
    kinds = [kind for kind in own if kind.__call__ is _CALL]
    with _replaced([nn.Module], "_call_impl", watcher), _replaced(kinds, "__call__", watcher):
        yield


def _calls_by_itself(module: nn.Module) -> bool:
    replaced = type(module)._call_impl is not nn.Module._call_impl  # pyright: ignore[reportPrivateUsage]
    return replaced or "_call_impl" in module.__dict__


@contextmanager
def watched_attributes(
    modules: Iterable[nn.Module], note: Callable[[nn.Module, str, Any], bool]
) -> Generator[None]:
    """Tell `note` of every assignment to an attribute of one of `modules`, or of its like.

    Args:
        modules: of a model.
        note: is given the module, the name, and the new value; True keeps it from happening.
    """

    def watcher(below: _Method) -> _Method:
        def assign(module: nn.Module, name: str, value: Any) -> None:
            if not note(module, name, value):
                below(module, name, value)

        return assign

    with _replaced({type(module) for module in modules}, "__setattr__", watcher):
        yield


@contextmanager
def _replaced(
    kinds: Iterable[type[nn.Module]], name: str, watcher: Callable[[_Method], _Method]
) -> Generator[None]:
    """Put watchers in front of a method of several classes, each of what it has or inherits."""
    found = [(kind, kind.__dict__.get(name), watcher(getattr(kind, name))) for kind in kinds]
    done = list[tuple[type[nn.Module], Any]]()
    try:
        for kind, own, watching in found:
            setattr(kind, name, watching)
            done.append((kind, own))
        yield
    finally:
        for kind, own in done:
            if own is None:
                delattr(kind, name)
            else:
                setattr(kind, name, own)


@contextmanager
def watched_reads(
    names: dict[type[nn.Module], set[str]], note: Callable[[nn.Module, str, Any], None]
) -> Generator[None]:
    """Tell `note` of every read of some attributes that are no tensors and no modules.

    Args:
        names: the attributes, by class; what a class computes or binds itself is left out.
        note: is given the module, the name, and the value: `Absent` where there is none.

    Examples:
        >>> net = nn.ReLU()
        >>> net.by = 2
        >>> with watched_reads({nn.ReLU: {"by"}}, lambda module, name, value: print(name, value)):
        ...     double = net.by * 2
        by 2
    """
    below = [
        (kind, name, next((b.__dict__[name] for b in kind.__mro__ if name in b.__dict__), Absent))
        for kind, wanted in names.items()
        for name in sorted(wanted)
    ]
    plain = [found for found in below if not hasattr(type(found[2]), "__get__")]
    done = list[tuple[type[nn.Module], str, Any, bool]]()
    try:
        for kind, name, value in plain:
            watching = WatchedRead(name, value, note)
            done.append((kind, name, watching, name in kind.__dict__))
            setattr(kind, name, watching)
        yield
    finally:
        for kind, name, watching, was_own in done:
            if kind.__dict__.get(name) is not watching:  # the code has put something else there
                continue
            if was_own:
                setattr(kind, name, watching.value)
            else:
                delattr(kind, name)


class Absent:
    """Stands for the value of an attribute that a module does not have."""


def _holds(module: nn.Module, name: str) -> bool:
    return name in module._modules or name in module._parameters or name in module._buffers


class WatchedRead:
    """Stands in a class for an attribute that instances keep in their own tables."""

    def __init__(self, name: str, value: Any, note: Callable[[nn.Module, str, Any], None]) -> None:
        self.name, self.value, self.note = name, value, note

    def __get__(self, module: nn.Module | None, kind: type[nn.Module]) -> Any:
        found = self.value if module is None else module.__dict__.get(self.name, self.value)
        if module is not None and (found is not Absent or not _holds(module, self.name)):
            self.note(module, self.name, found)
        if found is Absent:  # `__getattr__` looks where modules keep the rest
            raise AttributeError(f"{kind.__name__!r} object has no attribute {self.name!r}")
        return found

    def __set__(self, module: nn.Module, value: Any) -> None:
        module.__dict__[self.name] = value

    def __delete__(self, module: nn.Module) -> None:
        if self.name not in module.__dict__:
            raise AttributeError(self.name)
        del module.__dict__[self.name]


@contextmanager
def watched_functions(
    home: Any, names: Iterable[str], watch: Callable[..., Any]
) -> Generator[None]:
    """Let `watch` answer every call of some functions of a library.

    Args:
        home: the library, or what else holds the functions; those that it lacks are left out.
        names: of the functions.
        watch: is given the function, and its arguments.

    Examples:
        >>> import math
        >>> with watched_functions(math, ["log2"], lambda log2, value: -log2(value)):
        ...     math.log2(8)
        -3.0
    """

    def watcher(below: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return watch(below, *args, **kwargs)

        return functools.wraps(below)(call)

    before = {name: getattr(home, name) for name in names if hasattr(home, name)}
    try:
        for name, function in before.items():
            setattr(home, name, watcher(function))
        yield
    finally:
        for name, function in before.items():
            setattr(home, name, function)
