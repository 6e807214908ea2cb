"""Other arguments of a call: an optional one given or left out, another value of one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, fx

from refold.graph.trace.arguments import is_default
from refold.graph.trace.code.source import branches_on, handed_on, keywords_read, mentions
from refold.graph.trace.code.values import code_of
from refold.graph.trace.frames import Frame, leaves, map_tree, walk
from refold.graph.trace.other_runs.reach import Reach
from refold.graph.trace.other_runs.values import (
    numbered,
    ones_like,
    other_values,
    sides_like,
    tensor_like,
    tensors_like,
)
from refold.graph.trace.other_runs.variants import Recorded, Variant
from refold.graph.trace.recorder.torch_calls import RecordError

_OPEN = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
_FLAGS = ("output_hidden_states", "output_attentions")  # of Hugging Face's models


@dataclass(frozen=True)
class Unknown:
    """An argument of which no other value is known that the code takes.

    Args:
        what: how a call may differ, for a refusal.
        name: of the argument.
        value: what the recorded call gave.
    """

    what: str
    name: str = ""
    value: Any = None


class OtherArguments:
    """The runs of one recorded root with other arguments, or which of these are not known."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded, self._root = recorded, recorded.recorder.root_frame
        self._forward = recorded.recorder.root.forward

    @cached_property
    def runs(self) -> list[Variant | Unknown]:
        """All of them."""
        return list(self._other_arguments())

    def objection(self, places: list[fx.Node]) -> str | None:
        """Return why a step of a fold would be wrong with other arguments, or None."""
        for found in self.runs:
            if isinstance(found, Variant):
                reason = found.objection(places)
            else:
                frames = self._given(found.name, found.value)
                is_met = any(map(Reach(self._recorded.first, places).has, frames))
                reason = found.what if is_met else None
            if reason:
                return reason
        return None

    def _given(self, name: str, value: Any) -> list[Frame]:
        """Return the root, and the frames below it that are given a value of its arguments.

        None is given to many for other reasons: there the argument has to have the same name, and
        the code to branch on it.
        """
        found = [self._root]
        for frame in walk(self._root):
            if name and frame.parent in found and _is_given(frame, name, value):
                found.append(frame)
        return found

    def _other_arguments(self) -> Iterable[Variant | Unknown]:
        args, kwargs = given = self._recorded.arguments
        signature = inspect.signature(self._forward)
        bound = signature.bind(*args, **kwargs).arguments
        parameters = signature.parameters
        if any(parameters[key].kind in _OPEN for key in bound):
            yield from self._more_or_fewer(args, kwargs)
            return
        named = dict(bound)
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            yield from self._flagged(named)
        first = next((leaf for leaf in leaves(given) if isinstance(leaf, Tensor)), None)
        for parameter in parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL and args:
                yield from self._more_or_fewer(args, kwargs)
            elif parameter.kind is parameter.VAR_KEYWORD:
                yield from self._keywords(self._forward, parameter.name, named, first)
            elif parameter.default is not parameter.empty or parameter.name in named:
                yield from self._one_argument(parameter, named, first)

    def _keywords(
        self,
        code: Callable[..., Any],
        table: str,
        named: dict[str, Any],
        first: Tensor | None,
        seen: frozenset[CodeType | None] = frozenset(),
    ) -> Iterable[Variant | Unknown]:
        """Give keywords that code reads out of its `**table`, and those of what has all of it."""
        for name in keywords_read(code, table):
            what = f"its keyword argument {name} may be given"
            yield from self._try([{**named, name: v} for v in (True, tensor_like(first))], what)
        seen |= {code_of(code)}  # code may hand its keywords back to itself
        for callee in self._handed_on(code, table):
            if code_of(callee) in seen:
                continue
            for parameter in inspect.signature(callee).parameters.values():
                if parameter.kind is parameter.VAR_KEYWORD:
                    yield from self._keywords(callee, parameter.name, named, first, seen)
                elif parameter.default is not parameter.empty and parameter.name not in named:
                    found = self._one_argument(parameter, named, first, callee)
                    yield from (run for run in found if isinstance(run, Variant))

    def _handed_on(self, code: Callable[..., Any], table: str) -> Iterable[Callable[..., Any]]:
        """Yield the functions and own methods that code hands all its keywords on to."""
        plain = getattr(code, "__code__", None)
        names = () if plain is None else plain.co_varnames[:1]  # `self`, whatever it is called
        root = self._recorded.recorder.root
        scope = {**getattr(code, "__globals__", {}), **dict.fromkeys(names, root)}
        for written in handed_on(code, table):
            first, *rest = written.split(".")
            found = scope.get(first)
            for name in rest:
                found = getattr(found, name, None)
            if isinstance(found, FunctionType | MethodType):
                yield found

    def _more_or_fewer(self, args: tuple[Any, ...], kwargs: Any) -> Iterable[Variant | Unknown]:
        """Call a forward that takes any number of arguments with one more and with one less."""
        for other in ((*args, *args[-1:]), args[:-1]):
            what = f"it may be called with {len(other)} arguments"
            try:
                found = self._recorded.again.run((other, kwargs))
            except Exception:  # then it takes no such number
                continue
            yield self._recorded.beside(what, found)

    def _flagged(self, named: dict[str, Any]) -> Iterable[Variant | Unknown]:
        """Ask for more results, by flags that a Hugging Face model takes among its keywords."""
        for name in _FLAGS:
            if hasattr(getattr(self._recorded.recorder.root, "config", None), name):
                call = {**named, name: True}
                yield from self._try([call], f"{name} may be asked for", is_sure=True)

    def _one_argument(
        self,
        parameter: inspect.Parameter,
        named: dict[str, Any],
        first: Tensor | None,
        code: Callable[..., Any] | None = None,
    ) -> Iterable[Variant | Unknown]:
        """Give an argument another value; `code` takes it where the root's forward does not."""
        name, default = parameter.name, parameter.default
        what, value = f"its optional argument {name} may be given", named.get(name, default)
        if default is parameter.empty:
            what = f"its argument {name} may have another value"
        elif name in named and not is_default(value, default):
            left = {key: value for key, value in named.items() if key != name}
            what = f"its optional argument {name} may be left out"
            yield from self._try([left], what, is_sure=True)
        if _holds_tensors(value):
            yield from self._other_entries(name, value, named, first)
            return
        if not mentions(code or self._forward, name):
            return
        others: list[Any] = []
        if value is None:
            tried = ({**named, name: other} for other in tensors_like(first))
            [found] = self._try(tried, what)
            if isinstance(found, Unknown) and first is not None:  # it may ask for the numbers
                numbers = map_tree(numbered, named)
                tried = ({**numbers, name: other} for other in ones_like(first))
                [found] = self._try(tried, what, real=True)
            if isinstance(found, Variant):
                yield found
                return
            others.append(sides_like(first))
        given = [getattr(frame.module, frame.method) for frame in self._given(name, value)]
        others += other_values(value, [*given, *([code] if code else [])])
        tried = [found for v in others for found in self._try([{**named, name: v}], what)]
        runs = [found for found in tried if isinstance(found, Variant)]
        yield from runs or [Unknown(what, name, value)]

    def _other_entries(
        self, name: str, value: Any, named: dict[str, Any], first: Tensor | None
    ) -> Iterable[Variant]:
        """Give a list of values one more or one fewer, a table those that the code asks it for."""
        others: list[Any] = []
        if type(value) in (list, tuple):
            others = [value + value[-1:], *([value[:-1]] if len(value) > 1 else [])]
        elif type(value) is dict:
            keys = [key for key in keywords_read(self._forward, name) if key not in value]
            others = [{**value, key: tensor_like(first)} for key in keys]
        for other in others:
            what = f"its argument {name} may hold other values"
            found = self._try([{**named, name: other}], what)
            yield from (run for run in found if isinstance(run, Variant))

    def _try(
        self,
        calls: Iterable[dict[str, Any]],
        what: str,
        *,
        is_sure: bool = False,
        **options: Any,
    ) -> Iterable[Variant | Unknown]:
        """Record the first of these calls that runs; where `is_sure`, one that fails is wrong."""
        for call in calls:
            try:
                found = self._recorded.again.run(((), call), **options)
            except Exception as error:
                if is_sure and not isinstance(error, RecordError):
                    return
                continue
            yield self._recorded.beside(what, found)
            return
        yield Unknown(what)


def _is_given(frame: Frame, name: str, value: Any) -> bool:
    if value is None:
        is_named = name in frame.kwargs and frame.kwargs[name] is None
        return is_named and branches_on(getattr(frame.module, frame.method), name)
    return any(is_default(leaf, value) for leaf in leaves((frame.args, frame.kwargs)))


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in leaves(value))
