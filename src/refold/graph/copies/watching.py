"""Watchers of every call of a module and of every assignment to an attribute of one.

When a special method of `nn.Module` is replaced, Python visits every subclass; libraries define
thousands, and each time takes a millisecond. So `watchable` replaces the methods once around the
many recordings of a fold, and a watcher only puts itself in front of what is called then.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import nn


class _Method:
    """A special method of `nn.Module` that watchers can stand in front of."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._chain: list[Callable[..., Any]] = []  # torch's own first, the latest watcher last

    @contextmanager
    def replaced(self) -> Generator[None]:
        """Call the latest watcher instead; where that is so already, leave it at that."""
        chain = self._chain
        if chain:
            yield
            return
        chain.append(getattr(nn.Module, self._name))

        def latest(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            return chain[-1](module, *args, **kwargs)

        setattr(nn.Module, self._name, latest)
        try:
            yield
        finally:
            setattr(nn.Module, self._name, chain.pop())

    @contextmanager
    def behind(
        self, watcher: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> Generator[None]:
        """Call what `watcher` makes of the method as it is without it."""
        with self.replaced():
            self._chain.append(watcher(self._chain[-1]))
            try:
                yield
            finally:
                self._chain.pop()


_CALL, _ASSIGN = _Method("__call__"), _Method("__setattr__")


@contextmanager
def watchable() -> Generator[None]:
    """Make it cheap to watch modules, as often as you like."""
    with _CALL.replaced(), _ASSIGN.replaced():
        yield


@contextmanager
def watched_calls(watch: Callable[..., Any]) -> Generator[None]:
    """Let `watch` answer every call of a module.

    Args:
        watch: is given what calls the module, the module, its arguments, and those by name.

    Examples:
        >>> with watched_calls(lambda call, module, args, kwargs: -call(module, *args)):
        ...     nn.Identity()(3)
        -3
    """

    def watcher(below: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            return watch(below, module, args, kwargs)

        return call

    with _CALL.behind(watcher):
        yield


@contextmanager
def watched_attributes(note: Callable[[nn.Module, str, Any], bool]) -> Generator[None]:
    """Tell `note` of every assignment to an attribute of any module; True keeps it from happening.

    Args:
        note: is given the module, the name, and the new value.
    """

    def watcher(below: Callable[..., Any]) -> Callable[..., Any]:
        def assign(module: nn.Module, name: str, value: Any) -> None:
            if not note(module, name, value):
                below(module, name, value)

        return assign

    with _ASSIGN.behind(watcher):
        yield
