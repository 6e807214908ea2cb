"""What lists, tables and objects held when a fold was made: a call looks whether they still do.

Nobody hears of `self.options["norm"] = False` or `self.config.norm = False`. So a method whose
code has read such things compares them with what they were before it runs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, cast

import torch
from torch import nn

from refold.errors import RefusedError
from refold.graph.copies.held import CALLABLES, bound_values
from refold.graph.copies.modules import submodule
from refold.graph.trace.code.names import functions_of, names_in
from refold.graph.trace.recorder.flags import texts_in
from refold.graph.trace.recorder.plain_contents import contents

HELD = "_refold_held"
_BY_ANY_NAME = frozenset({"getattr", "vars", "__dict__", "values", "items"})


@dataclass(frozen=True)
class Contents:
    """What attributes of a module held.

    Args:
        where: the path of the module, for a refusal.
        held: what they held, by the path of a module below and the name of its attribute.
        words: the names by which the code of the model may ask; None for any name.
    """

    where: str
    held: dict[tuple[str, str], Any]
    words: frozenset[str] | None

    def check(self, module: nn.Module) -> None:
        """Refuse to run where something else is held now.

        Raises:
            RefusedError: then.
        """
        for (path, name), before in self.held.items():
            held = submodule(module, path).__dict__.get(name) if path else module.__dict__.get(name)
            if contents(held, self.words) != before:
                full = ".".join(part for part in (self.where, path, name) if part)
                raise RefusedError(
                    f"{full} holds something else than when this model was folded, and its "
                    "forward was made for that: change it in the original model, then fold"
                )


def words_of(kinds: Iterable[type], values: list[Any]) -> frozenset[str] | None:
    """Return the names by which the code of classes may ask what values hold; None for any.

    Examples:
        >>> words_of([nn.ReLU], [])
        frozenset()
    """
    codes = [function.__code__ for kind in kinds for function in functions_of(kind)]
    named = {name for code in codes for name in names_in(code)}
    codes += [function.__code__ for function in _functions_in(values)]
    for value in values:
        for base in type(value).__mro__:
            found = (getattr(one, "fget", one) for key, one in vars(base).items() if key in named)
            codes += [one.__code__ for one in found if isinstance(one, FunctionType)]
    words = {word for code in codes for word in (*names_in(code), *texts_in(code))}
    binds = any({*code.co_freevars} - {"__class__"} for code in codes)  # functions of its own
    return None if binds or words & _BY_ANY_NAME else frozenset(words)


def _functions_in(values: Iterable[Any]) -> Iterator[FunctionType]:
    """Yield the functions that values hold, in containers and bound to others as well."""
    seen, pending = set[int](), [*values]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, CALLABLES):
            pending.extend(bound_values(value))
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, dict):
            pending.extend(cast("dict[Any, Any]", value).values())
        elif isinstance(value, list | tuple):
            pending.extend(cast("list[Any]", value))


def checking(function: FunctionType, name: str) -> FunctionType:
    """Return a method that runs another one once what its module holds is as it was."""
    is_compiling = torch.compiler.is_compiling

    def method(self: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        if not is_compiling():
            held = self.__dict__.get(kept)
            if held is not None:
                held.check(self)
        return function(self, *args, **kwargs)

    kept = HELD
    made = FunctionType(method.__code__, function.__globals__, name, None, method.__closure__)
    return cast(FunctionType, functools.wraps(function)(made))
