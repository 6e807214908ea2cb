"""Sizes that know where they came from: ints and floats whose arithmetic can be recorded again.

`x.shape[-1] // 2` is a plain number for the model's code, and for a recording an expression over
`x`. Comparisons are told to the recording, since another input may answer them otherwise.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol, cast


class Listener(Protocol):
    """What a recording does with the questions that code asks about sizes."""

    def decide(self, answer: bool) -> bool:
        """Note that code compared a size; return the answer to give."""
        ...

    def lose(self) -> None:
        """Note that code made a plain number of a size."""
        ...

    def write(self) -> None:
        """Note that code made a text of a size."""
        ...

    def is_cached(self) -> bool:
        """Say whether a cache asks, which must not find what other sizes have left in it."""
        ...


class Size(int):
    """A whole number made from sizes of tensors.

    Args:
        value: the number.
        source: the function that computes it, then its arguments (numbers, sizes or whatever the
            recording knows a tensor by).
        listener: the recording.

    Examples:
        >>> class Deaf:
        ...     def decide(self, answer): return answer
        ...     def is_cached(self): return False
        ...     def lose(self): pass
        >>> half = Size(8, (len, "x"), Deaf()) // 2
        >>> int(half), half.source[0].__name__, half.source[2]
        (4, 'floordiv', 2)
    """

    source: tuple[Any, ...]
    listener: Listener

    def __new__(
        cls, value: Any, source: tuple[Any, ...] = (), listener: Listener | None = None
    ) -> Any:
        """Make a size; a plain number where code asks for one (`type(n)(value)`)."""
        if listener is None:
            return int(value)
        made = int.__new__(cls, value)
        made.source, made.listener = source, listener
        return made

    def __hash__(self) -> int:
        return id(self) if self.listener.is_cached() else int.__hash__(self)

    def __bool__(self) -> bool:
        return self.listener.decide(int.__bool__(self))

    def __int__(self) -> int:
        self.listener.lose()
        return int.__int__(self)

    def __float__(self) -> float:
        self.listener.lose()
        return int.__float__(self)

    @property
    def real(self) -> int:
        """The size itself, as for any whole number."""
        return self

    @property
    def numerator(self) -> int:
        """The size itself, as for any whole number."""
        return self

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int.__int__(self),)

    def __copy__(self) -> int:
        return self

    def __deepcopy__(self, memo: Any) -> int:
        return int.__int__(self)


class Ratio(float):
    """A number with a fraction made from sizes: `h / 2`, `w * 0.5`. See `Size`."""

    source: tuple[Any, ...]
    listener: Listener

    def __new__(
        cls, value: Any, source: tuple[Any, ...] = (), listener: Listener | None = None
    ) -> Any:
        """Make a ratio; a plain number where code asks for one (`type(n)(value)`)."""
        if listener is None:
            return float(value)
        made = float.__new__(cls, value)
        made.source, made.listener = source, listener
        return made

    def __hash__(self) -> int:
        return float.__hash__(self)

    def __bool__(self) -> bool:
        return self.listener.decide(float.__bool__(self))

    def __int__(self) -> int:
        self.listener.lose()
        return float.__int__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float.__float__(self),)


Number = Size | Ratio


def number(value: Any, source: tuple[Any, ...], listener: Listener) -> Any:
    """Return a number that knows its source; what is not a number stays as it is."""
    if type(value) is int:
        return Size(value, source, listener)
    return Ratio(value, source, listener) if type(value) is float else value


def plain(value: Any) -> Any:
    """Return a number without its source."""
    if isinstance(value, Size):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, Ratio) else value


def _binary(kind: type, name: str, function: Callable[..., Any], swapped: bool) -> None:
    compute = cast("Callable[[Any, Any], Any] | None", getattr(kind.__base__, name, None))
    if compute is None:
        return

    with_ratio = cast("Callable[[Any, Any], Any] | None", getattr(float, name, None))

    def method(self: Any, other: Any, *more: Any) -> Any:
        mine, theirs = plain(self), plain(other)
        if kind is Size and isinstance(theirs, float) and with_ratio is not None:
            result = with_ratio(float(mine), theirs)
        else:
            result = compute(mine, theirs, *map(plain, more))
        is_whole = name == "__mod__" and kind is Size and plain(other) in (1, -1)
        if result is NotImplemented or is_whole:  # what is left of any whole number by 1 is 0
            if isinstance(other, str | bytes | list | tuple):  # as many of it as the size says
                self.listener.lose()
            return result
        if more:  # `pow(n, 2, 100)`
            return number(result, (function, self, other, *more), self.listener)
        pair = (other, self) if swapped else (self, other)
        return number(result, (function, *pair), self.listener)

    setattr(kind, name, method)


def _unary(kind: type, name: str, function: Callable[..., Any]) -> None:
    compute = cast("Callable[[Any], Any]", getattr(kind.__base__, name))

    def method(self: Any, *args: Any) -> Any:
        return number(compute(plain(self), *args), (function, self, *args), self.listener)

    setattr(kind, name, method)


def _comparison(kind: type, name: str) -> None:
    compute = cast("Callable[[Any, Any], Any]", getattr(kind.__base__, f"__{name}__"))
    with_ratio = cast("Callable[[Any, Any], Any]", getattr(operator, name))

    def method(self: Any, other: Any) -> Any:
        mine, theirs = plain(self), plain(other)
        answer = (with_ratio if isinstance(theirs, float) else compute)(mine, theirs)
        return answer if answer is NotImplemented else self.listener.decide(answer)

    setattr(kind, f"__{name}__", method)


def _losing(kind: type, name: str) -> None:
    compute = cast("Callable[..., Any] | None", getattr(kind.__base__, name, None))

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.listener.lose()
        return cast("Callable[..., Any]", compute)(plain(self), *args, **kwargs)

    if compute is not None:
        setattr(kind, name, method)


_NAMED = {"and": "and_", "or": "or_"}


def _text(kind: type, name: str) -> None:
    write = cast("Callable[..., str]", getattr(kind.__base__, name))

    def method(self: Any, *args: Any) -> str:
        self.listener.write()
        return write(plain(self), *args)

    setattr(kind, name, method)


for _name in ("lshift", "rshift", "and", "or", "xor"):
    _binary(Size, f"__{_name}__", getattr(operator, _NAMED.get(_name, _name)), swapped=False)
    _binary(Size, f"__r{_name}__", getattr(operator, _NAMED.get(_name, _name)), swapped=True)
for _kind in (Size, Ratio):
    for _name in ("bit_length", "bit_count", "to_bytes", "as_integer_ratio", "is_integer", "hex"):
        _losing(_kind, _name)
    for _name in ("__repr__", "__str__", "__format__"):
        _text(_kind, _name)
    for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow"):
        _binary(_kind, f"__{_name}__", getattr(operator, _name), swapped=False)
        _binary(_kind, f"__r{_name}__", getattr(operator, _name), swapped=True)
    for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
        _comparison(_kind, _name)
    _unary(_kind, "__neg__", operator.neg)
    _unary(_kind, "__abs__", operator.abs)
    _unary(_kind, "__round__", round)
    _unary(_kind, "__floor__", math.floor)
    _unary(_kind, "__ceil__", math.ceil)
    _unary(_kind, "__trunc__", math.trunc)
    _unary(_kind, "__pos__", operator.pos)
_unary(Size, "__invert__", operator.invert)
