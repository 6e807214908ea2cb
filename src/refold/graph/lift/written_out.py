"""Elementwise functions that are written as several calls: `x * sigmoid(x)`, GELU by `erf`."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any, cast

import torch
from torch import Tensor, fx

from refold.graph.calls import Kind, canonical, kind_of, name_of
from refold.graph.copies.modules import submodule
from refold.graph.lift.activations import Activation, activation
from refold.graph.lift.interval import Interval
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.links import Link
from refold.graph.trace.frames import map_tree

_ARITHMETIC = ("add", "sub", "rsub", "mul", "div", "neg", "pow")
_MOST_CALLS = 16


def written_out(lifter: Lifter, value: fx.Node) -> Link | None:
    """Return the function that all readers of a value make of it together, of several calls.

    It is the shortest one: of the calls behind the value, the first whose result alone is read on.
    """
    inside, pending, queued = list[fx.Node](), list[fx.Node](), set[fx.Node]()
    node = value
    while len(inside) <= _MOST_CALLS:
        for user in node.users:
            if user not in queued:
                queued.add(user)
                heappush(pending, user)
        if not pending:
            return None
        if inside and _is_end(value, inside):
            return _function(lifter, value, inside)
        node = heappop(pending)
        if not _is_elementwise(lifter, node, {value, *inside}):
            return None
        inside.append(node)
    return None


def _is_end(value: fx.Node, inside: list[fx.Node]) -> bool:
    """Say whether the last of some calls is the only one that others read."""
    known = set(inside)
    return all(known.issuperset(node.users) for node in (value, *inside[:-1]))


def _is_elementwise(lifter: Lifter, node: fx.Node, known: set[fx.Node]) -> bool:
    if node in lifter.tainted:
        return False
    others = [source for source in node.all_input_nodes if source not in known]
    if any(_number(lifter, source) is None for source in others):
        return False
    if node.op == "call_module":
        found = activation(lifter, node)
        return found is not None and not (found.bounds or found.slope is not None)
    call = canonical(node)
    if call is None or Kind.VIEW in kind_of(node) or node.kwargs.get("out") is not None:
        return False
    return Kind.ELEMENTWISE in kind_of(node) or call.name in _ARITHMETIC


def _number(lifter: Lifter, node: fx.Node) -> float | None:
    """Return a constant that is one number for all places and channels."""
    found = lifter.constants.value(node)
    if isinstance(found, Tensor):
        return float(found) if found.numel() == 1 and not found.is_meta else None
    return found


def _function(lifter: Lifter, value: fx.Node, calls: list[fx.Node]) -> Link:
    def image(x: Interval) -> Interval:
        made = _run(lifter, value, calls, x.low) if x.low == x.high else None
        return Interval() if made is None else Interval(made, made)

    end = calls[-1]
    name = "_".join(name_of(node) for node in calls)
    return Link(end, value, activation=Activation(value, name, image))


def _run(lifter: Lifter, value: fx.Node, calls: list[fx.Node], number: float) -> float | None:
    """Return what some calls make of a number, in float64."""
    known: dict[fx.Node, Any] = {value: torch.tensor([number], dtype=torch.float64)}

    def given(leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return leaf
        return known[leaf] if leaf in known else _number(lifter, leaf)

    for node in calls:
        args = cast("tuple[Any, ...]", map_tree(given, node.args))
        kwargs = cast("dict[str, Any]", map_tree(given, dict(node.kwargs)))
        try:
            if node.op == "call_module":
                layer = submodule(lifter.capture.module, str(node.target))
                known[node] = layer(*args, **kwargs)
            elif node.op == "call_method":
                known[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                known[node] = cast(Any, node.target)(*args, **kwargs)
        except Exception:  # a number where torch wants a tensor, say
            return None
    return float(known[calls[-1]])
