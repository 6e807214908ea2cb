"""What a function leads to: functions that it may call, and values that its names stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

_DEPTH, _MOST = 3, 64
_FOREIGN = ("torch", "torchvision", "numpy")


def helpers_of(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Return the Python functions that a function names, and those that they name, nearest first.

    Examples:
        >>> def side(x): return x.shape[-1]
        >>> def ask(x): return side(x) == 9
        >>> [one.__name__ for one in helpers_of(lambda x: ask(x))]
        ['ask', 'side']
    """
    found, edge = dict[CodeType, Callable[..., Any]](), [function]
    for _ in range(_DEPTH):
        named = [value for one in edge for value in _values(one).values()]
        edge = [
            value
            for value in named
            if (code := _code(value)) is not None and found.setdefault(code, value) is value
        ]
        if len(found) > _MOST:
            break
    return list(found.values())[:_MOST]


def named_in(function: Callable[..., Any]) -> list[Any]:
    """Return the plain values that names in a function stand for, and those that it is made with.

    Examples:
        >>> limits = {9: "small", 12: "large"}
        >>> named_in(lambda x: limits.get(int(x.shape[-1])))[-2:]
        [9, 12]
    """
    code = _code(function)
    held = [] if code is None else [*_constants(code), *_values(function).values()]
    return [plain for value in held for plain in _plain(value)]


def _plain(value: Any, depth: int = 2) -> Iterator[Any]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | str):
        yield value
    elif isinstance(value, tuple | list | set | frozenset | dict) and depth:
        for item in list(cast("Any", value))[:_MOST]:
            yield from _plain(item, depth - 1)


def _constants(code: CodeType) -> Iterator[Any]:
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _constants(value)
        else:
            yield value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _names(value)


def _values(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what the names in a function's code stand for, as far as that is plain to see."""
    code = _code(function)
    if code is None:
        return {}
    plain = cast(FunctionType, getattr(function, "__func__", function))
    names = dict.fromkeys(_names(code))
    found = {name: plain.__globals__[name] for name in names if name in plain.__globals__}
    for name, cell in zip(code.co_freevars, plain.__closure__ or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    owners = [getattr(function, "__self__", None)]
    owners += [value for value in found.values() if isinstance(value, ModuleType)]
    for owner in owners:
        if owner is None or _home(owner) in _FOREIGN:
            continue
        for name in names:
            if name not in found and (value := _attribute(owner, name)) is not None:
                found[name] = value
    return found


def _attribute(owner: Any, name: str) -> Any:
    if name in getattr(owner, "__dict__", ()):
        return owner.__dict__[name]
    return getattr(type(owner), "__dict__", {}).get(name)


def _home(owner: Any) -> str:
    name = owner.__name__ if isinstance(owner, ModuleType) else ""
    return name.partition(".")[0]


def _code(value: Any) -> CodeType | None:
    """Return the code of a function of somebody's own, None where it is torch's or no function."""
    plain = value.__func__ if isinstance(value, MethodType) else value
    if not isinstance(plain, FunctionType) or plain.__module__.partition(".")[0] in _FOREIGN:
        return None
    return plain.__code__
