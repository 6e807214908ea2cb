"""Take away the calls that change nothing.

Five kinds: functions that give every number back (a leaky ReLU of slope 1, a product with one,
dropout in eval mode), functions that give back every number they can be given here (the ReLU of a
sum of ReLUs), changes of layout that undo each other once the norm between them is gone, what is
computed twice, and what nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import fx, nn

from refold.algebra.operator import Conv
from refold.graph.calls import Call, Kind, canonical, kind_of, name_of
from refold.graph.copies.modules import submodule
from refold.graph.fold.fold_pass import TWICE, FoldPass
from refold.graph.fold.record import Fold
from refold.graph.lift.activations import Activation, activation
from refold.graph.lift.context import Shape
from refold.graph.lift.interval import UNKNOWN
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.modules import lift_module
from refold.graph.lift.piece import Piece
from refold.graph.lift.ranges import Ranges
from refold.graph.lift.same_shape import have_same_places
from refold.graph.surgery.edits import alive
from refold.graph.trace.aliases import AliasGroups
from refold.graph.trace.effects import mutated

RESHAPES = frozenset({"flatten", "reshape", "squeeze", "unflatten", "unsqueeze"})
TURNS = frozenset({"transpose", "permute"})
_WIDENS = "it changes no number, but perhaps the precision of an input"
_COPIES = frozenset({"same"})
"""They change no number, yet where the numbers lie."""


def drop_idle(fold: FoldPass) -> None:
    """Take away every function that changes nothing, here or anywhere."""
    ranges: Ranges | None = None
    for node in list(fold.lifter.capture.graph.nodes):
        if not alive(node):
            continue
        piece = fold.lifter.lift(node)
        if isinstance(piece, Piece):
            calls = _calls(fold.lifter, node) if piece.is_nothing else []
            if calls and all(_is_idle(fold.lifter, call) for call in calls):
                fold.attempt(calls, partial(_drop_calls, fold, calls))
            elif piece.is_nothing and Kind.BROADCASTS in kind_of(node):
                fold.keep(node, _WIDENS)
            continue
        found = activation(fold.lifter, node)
        if found is None or found.keeps is None or node in fold.lifter.capture.stays:
            continue
        ranges = ranges or Ranges(fold.lifter, weigh=False)
        if ranges.of(found.source).lies_in(found.keeps) and _is_single(fold.lifter, node):
            proof = _proof(fold.lifter, ranges, found)
            fold.attempt([*proof, node], partial(_drop, fold, node, found.source))


def _calls(lifter: Lifter, node: fx.Node) -> list[fx.Node]:
    """Return a call and all others of its layer, which go together; none where some are not seen.

    One dropout often stands for several.
    """
    if _is_single(lifter, node):
        return [node]
    graph = lifter.capture.graph
    found = [n for n in graph.nodes if n.op == "call_module" and n.target == node.target]
    return found if len(found) == lifter.capture.calls[str(node.target)] else []


def _is_idle(lifter: Lifter, node: fx.Node) -> bool:
    piece = lifter.lift(node)
    return isinstance(piece, Piece) and piece.is_nothing and _may_go(lifter, node, piece.sources[0])


def _drop_calls(fold: FoldPass, calls: list[fx.Node]) -> bool:
    """Let readers of calls that change nothing read what these read, of all of them or of none."""
    values = [node.all_input_nodes[0] for node in calls]
    if len(calls) > 1 and any(_must_stay(fold, *pair) for pair in zip(calls, values, strict=True)):
        return False
    done = False
    for node in calls:
        piece = fold.lifter.lift(node)
        assert isinstance(piece, Piece)  # what it reads may have changed, it has not
        done = _drop(fold, node, piece.sources[0], times=len(calls), is_idle=True)
    return done


def _must_stay(fold: FoldPass, node: fx.Node, value: fx.Node) -> bool:
    """Say whether readers of a call may not read what it reads instead; note why."""
    reason = fold.lifter.tainted.get(node) or fold.lifter.tainted.get(value)
    if reason is None and fold.shares_anew(node, value):
        reason = TWICE
    if reason is not None and "dropout" not in _told(fold, node)[0].lower():
        fold.keep(node, reason)
    return reason is not None


def _drop(
    fold: FoldPass, node: fx.Node, value: fx.Node, *, times: int = 1, is_idle: bool = False
) -> bool:
    """Let readers read `value` instead of `node`, and note it unless nothing was computed."""
    if _must_stay(fold, node, value):
        return False
    where, (name, count) = fold.path(node), _told(fold, node)
    computes = "dropout" not in name.lower()
    fold.editor.bypass(node, value, times=times, is_idle=is_idle)
    fold.edited()
    if computes:
        fold.folds.append(Fold(where, "drop what changes nothing", name, count, 0))
    return True


def _told(fold: FoldPass, node: fx.Node) -> tuple[str, int]:
    """Return what an account calls a call that goes, and how many parameters it has."""
    if node.op != "call_module":
        return name_of(node), 0
    layer = submodule(fold.lifter.capture.module, str(node.target))
    return type(layer).__name__, sum(p.numel() for p in layer.parameters())


def _is_single(lifter: Lifter, node: fx.Node) -> bool:
    return node.op != "call_module" or lifter.capture.calls.get(str(node.target), 1) == 1


def _may_go(lifter: Lifter, node: fx.Node, value: fx.Node) -> bool:
    """Say whether the calls after `node` see no difference when it is gone."""
    call = canonical(node)
    if call is not None and call.name in _COPIES:
        return False
    if node.op == "call_module":
        layer = submodule(lifter.capture.module, str(node.target))
        return not isinstance(layer, nn.Identity)
    if Kind.BROADCASTS not in kind_of(node):
        return True
    return _keeps_precision(lifter, node, value)


def _keeps_precision(lifter: Lifter, node: fx.Node, value: fx.Node) -> bool:
    """Say whether a sum or product with a constant has the precision of the value."""
    precision = _precision(lifter, value)
    if precision is None:
        return False
    constants = (lifter.tensor(source) for source in node.all_input_nodes if source is not value)
    return all(t is None or t.ndim == 0 or t.dtype == precision for t in constants)


def _precision(lifter: Lifter, value: fx.Node) -> torch.dtype | None:
    """Return the floating type of a value that the layer it comes from tells."""
    seen: set[fx.Node] = set()
    while value not in seen:
        seen.add(value)
        if value.op == "call_module":
            layer = submodule(lifter.capture.module, str(value.target))
            weight = getattr(layer, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.is_floating_point():
                return weight.dtype
        piece = lifter.lift(value)
        call = canonical(value)
        weight = lifter.tensor(call.arguments.get("weight")) if call is not None else None
        if weight is not None and weight.is_floating_point():
            return weight.dtype
        first = value.args[0] if value.args else None
        source = piece.sources[0] if isinstance(piece, Piece) else first
        if not isinstance(source, fx.Node) or not (
            isinstance(piece, Piece)
            or Kind.ELEMENTWISE in kind_of(value)
            or value.op == "call_module"
        ):
            return None
        value = source
    return None


def _proof(lifter: Lifter, ranges: Ranges, found: Activation) -> list[fx.Node]:
    """Return the values that an interval was told from, back to functions that bound anything."""
    pending, seen = [found.source], set[fx.Node]()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        bound = activation(lifter, node)
        if bound is not None and bound.image(UNKNOWN) == ranges.of(node):
            continue
        pending.extend(node.all_input_nodes)
    return list(seen)


# calls made twice


def drop_repeats(fold: FoldPass) -> None:
    """Make equal calls of layers and functions one, for all who read them."""
    for value in list(fold.lifter.capture.graph.nodes):
        if not alive(value) or len(value.users) < 2 or value in fold.lifter.tainted:
            continue
        for first, *others in equal_calls(value, partial(_is_pure, fold.lifter)):
            for other in others:
                fold.attempt([first, other], partial(_make_one, fold, first, other))


def equal_calls(value: fx.Node, choose: Callable[[fx.Node], bool]) -> Iterator[list[fx.Node]]:
    """Yield the chosen readers of a value that are one and the same call, in graph order."""
    found: dict[tuple[object, ...], list[fx.Node]] = {}
    for node in filter(choose, value.users):
        key = (node.op, str(node.target), repr(node.args), repr(node.kwargs))
        found.setdefault(key, []).append(node)
    yield from (sorted(nodes) for nodes in found.values() if len(nodes) > 1)


def _is_pure(lifter: Lifter, node: fx.Node) -> bool:
    """Say whether a call gives the same numbers each time, and no memory that it was given."""
    capture = lifter.capture
    if not lifter.may_go(node):
        return False
    if node.op != "call_module":
        found = activation(lifter, node) if Kind.ELEMENTWISE in kind_of(node) else None
        return found is not None and not mutated(node) and len(node.all_input_nodes) == 1
    path = str(node.target)
    if path in capture.pinned or len(node.args) != 1 or node.kwargs or mutated(node):
        return False
    layer, source = submodule(capture.module, path), node.args[0]
    if not isinstance(source, fx.Node) or any(map(capture.changing, layer.buffers())):
        return False
    piece = lift_module(layer, source, lifter.shape(source))
    return activation(lifter, node) is not None or (
        isinstance(piece, Piece) and not piece.is_nothing
    )


def _make_one(fold: FoldPass, first: fx.Node, other: fx.Node) -> bool:
    groups = AliasGroups(fold.editor.graph)
    if groups.is_written(first) or groups.is_written(other) or fold.shares_anew(other, first):
        return False
    where, name = fold.path(other), name_of(other)
    fold.editor.replace(other, first)
    fold.editor.sweep()
    fold.edited()
    fold.folds.append(Fold(where, "drop what is computed twice", name, 0, 0))
    return True


# calls that nobody reads


def drop_unread(fold: FoldPass) -> None:
    """Take away layers and functions whose value nobody reads."""
    for node in unread(fold.lifter):
        if not node.users:  # else one of its readers had to stay
            fold.attempt([node], partial(_discard, fold, node))


def unread(lifter: Lifter) -> list[fx.Node]:
    """Return the calls that only compute a value for which nobody has a use, the last first."""
    found = dict[fx.Node, None]()
    for node in reversed(lifter.capture.graph.nodes):
        is_read = not found.keys() >= set(node.users)
        if is_read or node.op in ("placeholder", "get_attr", "output"):
            continue
        if _computes_only(lifter, node):
            found[node] = None
    return list(found)


def _computes_only(lifter: Lifter, node: fx.Node) -> bool:
    if _is_pure(lifter, node):
        return True
    piece = lifter.lift(node)
    plain = isinstance(piece, Piece) and not piece.is_nothing
    return plain and node.op != "call_module" and lifter.may_go(node) and not mutated(node)


def _discard(fold: FoldPass, node: fx.Node) -> bool:
    if AliasGroups(fold.editor.graph).is_written(node):
        return False
    where, (name, count) = fold.path(node), _told(fold, node)
    fold.editor.discard([node])
    fold.edited()
    fold.folds.append(Fold(where, "drop what nobody reads", name, count, 0))
    return True


# layouts that undo each other


def drop_layouts(fold: FoldPass) -> bool:
    """Take away changes of layout that end where they began, whatever the size.

    Return whether one that is gone lay between a layer and a sum or concat: these may fold now.
    """
    meet = False
    for node in list(fold.lifter.capture.graph.nodes):
        if not alive(node) or not _is_layout(fold.lifter, node):
            continue
        for steps, value in _before(fold.lifter, node):
            if _undone(fold.lifter, steps, value):
                readers = list(node.users)
                done = fold.attempt([*steps, node], partial(_undo, fold, node, value))
                meet |= done and any(_is_join(fold.lifter, user) for user in readers)
                break
    return meet


def _is_join(lifter: Lifter, node: fx.Node) -> bool:
    piece = lifter.lift(node)
    return isinstance(piece, Piece) and piece.join != "none"


def _undo(fold: FoldPass, node: fx.Node, value: fx.Node) -> bool:
    where = fold.path(node)
    fold.editor.bypass(node, value)
    fold.editor.sweep()
    fold.edited()
    fold.folds.append(Fold(where, "drop what is undone", name_of(node), 0, 0))
    return True


def _is_layout(lifter: Lifter, node: fx.Node) -> bool:
    call = canonical(node)
    known = node not in lifter.tainted and node not in lifter.capture.stays
    if call is not None and call.name == "col2im":  # a reshape where it has a piece
        return known and isinstance(lifter.lift(node), Piece)
    return known and call is not None and call.name in RESHAPES | TURNS | {"reshape_as"}


def _before(lifter: Lifter, node: fx.Node) -> Iterator[tuple[list[fx.Node], fx.Node]]:
    """Yield the changes of layout that end in `node`, the last first, and what they begin with."""
    steps, current = list[fx.Node](), node
    kind = _kind(node)
    while _is_layout(lifter, current) and _kind(current) == kind:
        call = canonical(current)
        assert call is not None
        steps.append(current)
        current = call["input"]
        if not isinstance(current, fx.Node) or current in lifter.tainted:
            return
        if len(steps) > 1 and lifter.shape(current) == lifter.shape(node):
            yield list(steps), current


def _kind(node: fx.Node) -> bool:
    call = canonical(node)
    return call is not None and call.name in TURNS


def _undone(lifter: Lifter, steps: list[fx.Node], value: fx.Node) -> bool:
    shape = lifter.shape(value)
    if shape is None:
        return False
    if _kind(steps[0]):
        order = list(range(len(shape)))
        for step in reversed(steps):
            order = turned(step, order)
        return order == list(range(len(shape)))
    return _is_size_of(lifter, steps, value, shape)


def turned(step: fx.Node, order: list[int]) -> list[int]:
    """Return an order of axes after one more transpose or permutation."""
    call = canonical(step)
    assert call is not None
    if call.name == "permute":
        dims = call["dims"]
        given: Iterable[int] = dims if isinstance(dims, (tuple, list)) else (dims,)
        return [order[dim] for dim in given]
    one, two = call["dim0"], call["dim1"]
    turned = list(order)
    turned[one], turned[two] = order[two], order[one]
    return turned


def _is_size_of(lifter: Lifter, steps: list[fx.Node], value: fx.Node, shape: Shape) -> bool:
    """Say whether the last reshape gives the shape of `value` for every input."""
    call = canonical(steps[0])
    assert call is not None
    if call.name == "reshape_as":
        return call["other"] is value
    if call.name == "col2im":
        return _lays_back(lifter, call, steps[1:], value, shape)
    if call.name != "reshape" or "dim" in call.arguments:
        return False
    sizes, made = call["shape"], canonical(value)
    if not isinstance(sizes, (tuple, list)):
        return _asks(sizes, value) is not None and sizes.args[1:] in ((), ("shape",))
    if made is not None and made.arguments == {"input": made["input"], "shape": sizes}:
        return True  # as many numbers, laid out in the words that laid them out before
    unknown = [
        size
        for axis, size in enumerate(sizes)
        if not _is_axis(lifter, size, axis, value, shape)
        and not (axis == 1 and size == _width(lifter, value, shape))
    ]
    return len(sizes) == len(shape) and unknown in ([], [-1])


def _lays_back(
    lifter: Lifter, call: Call, steps: list[fx.Node], value: fx.Node, shape: Shape
) -> bool:
    """Say whether rows of places become the map again that `value` was."""
    sides: Any = call["output_size"]
    row = canonical(steps[0]) if len(steps) == 1 else None
    if row is None or row.name != "flatten" or not isinstance(sides, (tuple, list)):
        return False
    if row["start_dim"] not in (2, -2):
        return False
    given = enumerate(cast("tuple[object, ...]", sides), start=2)
    return len(shape) == 4 and all(_is_axis(lifter, n, axis, value, shape) for axis, n in given)


def _asks(size: object, value: fx.Node) -> fx.Node | None:
    """Return the node that asks for the size of `value`, if this is one."""
    asks = isinstance(size, fx.Node) and (
        size.target == "size" or (size.target is getattr and size.args[1:] == ("shape",))
    )
    return size if asks and isinstance(size, fx.Node) and size.args[0] is value else None


def _is_axis(lifter: Lifter, size: object, axis: int, value: fx.Node, shape: Shape) -> bool:
    """Say whether a size is that of an axis of `value`, or of a map with as many places."""
    if not isinstance(size, fx.Node) or not size.args:
        return False
    if size.target == "size" and len(size.args) == 2:
        index, asks = size.args[1], size
    elif name_of(size) == "getitem":
        index, asks = size.args[1], size.args[0]
    else:
        return False
    if not isinstance(index, int) or index % len(shape) != axis:
        return False
    if _asks(asks, value) is not None:
        return True
    other = asks.args[0] if isinstance(asks, fx.Node) and asks.args else None
    if not isinstance(other, fx.Node) or _asks(asks, other) is None or axis == 1:
        return False
    alike = (
        len(lifter.shape(other) or ()) == len(shape) and _width(lifter, value, shape) is not None
    )
    return alike and have_same_places(lifter, (value, other))


def _width(lifter: Lifter, value: fx.Node, shape: Shape) -> int | None:
    """Return the channels that a convolution gives whose value has this shape."""
    piece = lifter.lift(value)
    op = piece.ops[0] if isinstance(piece, Piece) and piece.join == "none" else None
    if not isinstance(op, Conv) or not 0 < len(op.axes) == len(shape) - 2:
        return None
    return op.out_channels
