"""The steps that a residual's sides are made of, found by what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from refold.algebra.operator import (
    Affine,
    AvgPool,
    Conv,
    Identity,
    Operator,
    Resample,
    Zero,
    chain,
    points,
)
from refold.graph.calls import canonical
from refold.graph.copies.modules import submodule
from refold.graph.lift.activations import Activation, activation
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece
from refold.graph.lift.windows import pool_axes
from refold.ranked import POOLS

_LONGEST_GATE = 16


@dataclass(frozen=True, eq=False)
class Link:
    """One step of a chain, from the value it reads to the value it gives.

    Args:
        node: the step's node.
        source: what it reads.
        ops: what it does, where it is affine.
        activation: the function, where it is elementwise.
        gate: the steps from `source` to the factor, where it multiplies a value by a gate made
            from that value (squeeze and excite).
        passed: the nodes of the gate, those that only hand values on included.
        windows: sizes that the map's sides must divide by for `ops` to hold.
    """

    node: fx.Node
    source: fx.Node
    ops: tuple[Operator, ...] = ()
    activation: Activation | None = None
    gate: tuple[Link, ...] = ()
    passed: tuple[fx.Node, ...] = ()
    windows: tuple[int, ...] = ()

    @property
    def is_affine(self) -> bool:
        """Whether the step is an affine map."""
        return self.activation is None and not self.gate


def link(lifter: Lifter, node: fx.Node) -> Link | str | None:
    """Return the step that gives a node's value, a reason why it is none, or None."""
    lifted = lifter.lift(node)
    if isinstance(lifted, Piece) and lifted.join == "none":
        return _affine_link(lifter, node, lifted)
    found = activation(lifter, node)
    if found is not None:
        return Link(node, found.source, activation=found)
    if node in lifter.tainted:
        return lifter.tainted[node]
    special = _whole_pool(lifter, node) or _widening(lifter, node)
    if special is not None:
        return special
    if isinstance(lifted, str):
        return lifted
    calls = lifter.capture.calls.get(str(node.target), 1) if node.op == "call_module" else 1
    if calls > 1:
        return f"{lifter.capture.full(str(node.target))} is called {calls} times"
    call = canonical(node)
    if call is not None and call.name == "mul":
        return _gate(lifter, node, call["input"], call["other"])
    return None


def _affine_link(lifter: Lifter, node: fx.Node, piece: Piece) -> Link | str | None:
    source, op = piece.sources[0], piece.ops[0]
    if piece.by_rank is None:
        return Link(node, source, chain(op))
    shape = lifter.shape(source)
    ranked = piece.by_rank(len(shape) - 2) if shape is not None and len(shape) > 1 else None
    if isinstance(ranked, tuple):
        return Link(node, source, chain(ranked[0]))
    return ranked or _widening(lifter, node)


def _whole_pool(lifter: Lifter, node: fx.Node) -> Link | None:
    """Return a pool with `ceil_mode` as one without, where the example's sides divide."""
    call, source = canonical(node), node.args[0] if node.args else None
    shape = lifter.shape(source)
    if shape is None:
        return None
    if node.op == "call_module" and str(node.target) not in lifter.capture.pinned:
        pool: Any = submodule(lifter.capture.module, str(node.target))
        if type(pool) not in POOLS.values():
            return None
        given = (pool.kernel_size, pool.stride, pool.padding)
        divisor, ceils = getattr(pool, "divisor_override", None), pool.ceil_mode
    elif call is not None and call.name.startswith("avg_pool"):
        given = (call["kernel_size"], call["stride"], call["padding"])
        divisor, ceils = call["divisor_override"], call["ceil_mode"]
    else:
        return None
    axes = pool_axes(len(shape) - 2, *given)
    sizes = tuple(axis.kernel for axis in axes)
    tiles = all(axis.kernel == axis.stride and not axis.lo for axis in axes)
    whole = all(size % axis.kernel == 0 for size, axis in zip(shape[2:], axes, strict=True))
    if not ceils or divisor or not tiles or not whole:
        return None
    return Link(node, cast(fx.Node, source), (AvgPool(axes),), windows=sizes)


def _widening(lifter: Lifter, node: fx.Node) -> Link | None:
    """Return zeros added around the channels, as ResNet's option A does."""
    before, after = lifter.shape(node.args[0] if node.args else None), lifter.shape(node)
    call = canonical(node)
    if call is None or before is None or after is None or len(before) != len(after):
        return _zeros_beside(lifter, node)
    if call.name not in ("pad", "constant_pad") or before[2:] != after[2:]:
        return _zeros_beside(lifter, node)
    pads = call["pad"]
    rank = len(before) - 2
    plain = isinstance(pads, (tuple, list)) and len(cast("list[Any]", pads)) == 2 * rank + 2
    if not plain or call.arguments.get("mode", "constant") != "constant" or before[0] != after[0]:
        return None
    low, high = (int(n) for n in cast("list[Any]", pads)[-2:])
    if call["value"] not in (None, 0) or min(low, high) < 0 or any(pads[:-2]):
        return None
    op = embedding(before[1], low, high, rank)
    return Link(node, cast(fx.Node, node.args[0]), (op,))


def _zeros_beside(lifter: Lifter, node: fx.Node) -> Link | None:
    """Return a concat of one value with zeros made from it."""
    piece, shape = lifter.lift(node), lifter.shape(node)
    if not isinstance(piece, Piece) or piece.join != "concat" or shape is None:
        return None
    zero = [_is_zero(lifter, value) for value in piece.sources]
    shapes = [lifter.shape(value) for value in piece.sources]
    if zero.count(False) != 1 or None in shapes or piece.rank_in != len(shape) - 2:
        return None
    at = zero.index(False)
    widths = [cast("tuple[int, ...]", s)[1] for s in shapes]
    op = embedding(widths[at], sum(widths[:at]), sum(widths[at + 1 :]), len(shape) - 2)
    return Link(node, piece.sources[at], (op,))


def _is_zero(lifter: Lifter, value: fx.Node) -> bool:
    piece = lifter.lift(value)
    return isinstance(piece, Piece) and any(isinstance(op, Zero) for op in chain(piece.ops[0]))


# gates


def _gate(lifter: Lifter, node: fx.Node, first: Any, second: Any) -> Link | str | None:
    if not (lifter.depends(first) and lifter.depends(second)):
        return None
    for value, factor in ((first, second), (second, first)):
        spread = (factor,) if _expands(factor) else ()
        small: fx.Node = factor.args[0] if spread else factor
        steps = _steps_to(lifter, value, small)
        if steps is None:
            continue
        shape, seen = lifter.shape(small), lifter.shape(value)
        if shape is None or seen is None or shape[1:] != (seen[1], *(1,) * (len(seen) - 2)):
            return "it is multiplied by a gate that is not one number per channel"
        inner = (node for step in steps for node in (step.node, *_through(lifter, step)))
        return Link(node, value, gate=steps, passed=(*inner, *spread))
    return "it is multiplied by a gate that is computed from the input"


def _expands(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "expand_as"


def _through(lifter: Lifter, step: Link) -> tuple[fx.Node, ...]:
    piece = lifter.lift(step.node)
    return piece.through if isinstance(piece, Piece) else ()


def _steps_to(lifter: Lifter, value: fx.Node, factor: fx.Node) -> tuple[Link, ...] | None:
    links: list[Link] = []
    current = factor
    while current is not value:
        found = link(lifter, current)
        if not isinstance(found, Link) or found.gate or len(links) > _LONGEST_GATE:
            return None
        links.append(found)
        current = found.source
    return tuple(reversed(links)) if links else None


def pools(step: Link) -> bool:
    """Say whether a step of a gate only moves or averages positions."""
    return step.is_affine and all(isinstance(op, (Identity, Resample, AvgPool)) for op in step.ops)


def passed_on(steps: Sequence[Link], value: float) -> float | None:
    """Return what some steps make of a number, in any channel; None where they differ in that."""
    for step in steps:
        if step.activation is not None:
            made = step.activation.at(value)
            if made is None:
                return None
            value = made
        elif not pools(step):
            [op, *others] = step.ops or (None,)
            numbers = [op.scale, op.shift] if isinstance(op, Affine) else []
            if others or not numbers or any(n is not None and n.ndim for n in numbers):
                return None
            scale, shift = (None if n is None else float(n) for n in numbers)
            value = value * (1.0 if scale is None else scale) + (shift or 0.0)
    return value


def flat(steps: Sequence[Link]) -> list[tuple[Link, Operator | None]]:
    """Return the operators of some steps one by one; a nonlinear step has none."""
    found: list[tuple[Link, Operator | None]] = []
    for step in steps:
        found.extend((step, op) for op in step.ops)
        if not step.ops:
            found.append((step, None))
    return found


def embedding(channels: int, before: int, after: int, rank: int) -> Conv:
    """Return the pointwise convolution that adds zero channels around those it reads.

    Examples:
        >>> embedding(1, 0, 1, 0).weight.tolist()
        [[1.0], [0.0]]
    """
    weight = torch.zeros(before + channels + after, channels, *(1,) * rank, dtype=torch.float64)
    weight[range(before, before + channels), range(channels)] = 1.0
    return Conv(weight, None, points(rank))
