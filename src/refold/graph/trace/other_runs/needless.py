"""Whether other runs of a root can tell nothing: its code asks nothing, and tells its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from types import FunctionType, MethodType
from typing import Any, cast

from torch import Tensor, fx

from refold.graph.calls import FILLS, Kind, kind_of, name_of
from refold.graph.trace.code.values import constants_of, helpers_of
from refold.graph.trace.frames import Frame, frame_of, leaves
from refold.graph.trace.other_runs.variants import picks
from refold.graph.trace.recorder.recorder import Recorder


def says_all(recorder: Recorder, order: Iterable[fx.Node]) -> bool:
    """Say whether a run of a root does the same as any other, whatever it is given.

    Its code asks nothing of a value but its rank, picks nothing from one and makes none; and every
    number that it hands to a call stands in it, or in an attribute of the module: none comes from
    where each run may find another.

    Args:
        recorder: the recorded run.
        order: its nodes as they were recorded.
    """
    asks = recorder.gives_size or recorder.asks_form or recorder.unsettled
    if asks or recorder.opaque or recorder.constants:
        return False
    if any(what not in recorder.others for _, what in recorder.decisions):
        return False
    known = cache(_plain_values)
    calls = (node for node in order if node.op in ("call_function", "call_method"))
    return not any(picks(n) or _makes(n) or not _is_told(n, known) for n in calls)


def _makes(node: fx.Node) -> bool:
    return name_of(node).rstrip("_") in FILLS or bool(kind_of(node) & Kind.RANDOM)


def _is_told(node: fx.Node, known: Callable[[Frame], frozenset[Any]]) -> bool:
    values = [v for v in leaves((node.args, node.kwargs)) if not isinstance(v, (fx.Node, Tensor))]
    given = [value for value in values if value is not None and not isinstance(value, bool)]
    return not given or all(
        isinstance(value, int | float | str) and value in known(frame_of(node)) for value in given
    )


def _plain_values(frame: Frame) -> frozenset[Any]:
    """Return the numbers and texts that the code of a frame, or its module, holds."""
    method = getattr(frame.module, frame.method)
    function = method.__func__ if isinstance(method, MethodType) else method
    own = (value for name, value in vars(frame.module).items() if name[0] != "_")
    return _values_in(function).union(*map(_plain, own))


@cache
def _values_in(function: Any) -> frozenset[Any]:
    found: list[Any] = []
    for one in (function, *helpers_of(function)):
        if isinstance(one, FunctionType):
            found += [*constants_of(one.__code__), *(one.__defaults__ or ())]
    return frozenset(value for held in found for value in _plain(held))


def _plain(value: Any) -> Iterator[Any]:
    if isinstance(value, int | float | str):
        yield value
    elif isinstance(value, tuple | list):
        yield from (item for item in cast("list[Any]", value) if isinstance(item, int | float))
