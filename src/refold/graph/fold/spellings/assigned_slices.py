"""A new map whose channels are all assigned, a slice at a time: the values side by side.

`y = x.new_empty(…); y[:, :c] = a; y[:, c:] = b` is `torch.cat((a, b), 1)`, along any axis but the
batch. It is so for every size where the slices follow on each other from the first channel to the
last, the values have the shape of their slices, and the new map their type and device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import fx

from refold.errors import RefusedError
from refold.graph.calls import canonical, name_of, place_of, words
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.record import Fold
from refold.graph.lift.joins.new_values import (
    FROM_VALUE,
    LIKE_VALUE,
    OF_SIZES,
    has_shape_of,
    kinds_of,
    sizes_of,
)
from refold.graph.lift.kinds import same_kind
from refold.graph.lift.lifter import Lifter
from refold.graph.surgery.edits import alive
from refold.graph.trace.frames import nodes_in

_NEW = FROM_VALUE | LIKE_VALUE | OF_SIZES
_ALL = slice(None)
_MOST_AXES = 8
_GAPS = "its slices do not follow on each other from the first channel to the last"


@dataclass(frozen=True, eq=False)
class _Write:
    """A slice of one axis that is overwritten.

    Args:
        calls: what does it, the last one last.
        axis: the axis.
        start: where the slice begins, a number or what gives one.
        stop: where it ends; None for the end of the axis.
        value: what is written.
    """

    calls: tuple[fx.Node, ...]
    axis: int
    start: Any
    stop: Any
    value: fx.Node


def join_assigned_slices(fold: FoldPass) -> bool:
    """Lay values side by side that are assigned to all slices of a new map; say if anywhere."""
    done = False
    for node in list(fold.lifter.capture.graph.nodes):
        if alive(node) and node.op.startswith("call_") and name_of(node) in _NEW:
            try:
                writes = _writes(fold.lifter, node)
            except RefusedError as error:
                fold.keep(node, f"what is assigned to its slices is not laid side by side: {error}")
                continue
            if writes:
                calls = [node, *(call for write in writes for call in write.calls)]
                done |= fold.attempt(calls, partial(_join, fold, node, writes, calls))
    if done:
        fold.editor.sweep()
    return done


def _join(fold: FoldPass, node: fx.Node, writes: list[_Write], calls: list[fx.Node]) -> bool:
    values = [write.value for write in writes]
    last = max(write.calls[-1] for write in writes)
    joined = fold.editor.insert_function(torch.cat, (values, writes[0].axis), before=last)
    joined.meta["dtype"] = node.meta.get("dtype")
    fold.lifter.shapes[joined] = fold.lifter.shapes[node]
    where, detail = fold.path(node), f"{len(writes)} slices of {place_of(node)}"
    fold.editor.replace(node, joined)
    fold.editor.discard(calls)
    fold.touch(calls, [joined])
    fold.folds.append(Fold(where, "lay assigned slices side by side", detail, 0, 0))
    return True


def _writes(lifter: Lifter, node: fx.Node) -> list[_Write]:
    """Return what is written into a new map, from its first channel to its last one.

    Returns:
        Nothing where no two slices are written.

    Raises:
        RefusedError: when these are not all of it, or something else is read or written.
    """
    shape, capture = lifter.shape(node), lifter.capture
    if len(node.users) < 3:
        return []
    rank = _MOST_AXES if shape is None else len(shape)
    found = {user: _write(lifter, node, user, rank) for user in node.users}
    writes = [write for write in found.values() if write is not None]
    readers = [user for user, write in found.items() if write is None]
    if len(writes) < 2 or not readers or not any(lifter.depends(w.value) for w in writes):
        return []
    if shape is None:
        raise RefusedError("the number of channels is unknown; pass example_inputs")
    first = min(readers)
    if max(write.calls[-1] for write in writes) > first:
        raise RefusedError(f"{place_of(first)} comes before the last of them is assigned")
    for call in (node, *(call for write in writes for call in write.calls)):
        if reason := capture.stays.get(call) or capture.elsewhere.get(call):
            raise RefusedError(reason)
    ordered = _in_a_row(writes, shape, sizes_of(node))
    for write in ordered:
        _check(lifter, node, shape, write)
    return ordered


def _write(lifter: Lifter, node: fx.Node, user: fx.Node, rank: int) -> _Write | None:
    """Return the slice that a user of a new map overwrites, or its only user does."""
    if name_of(user) == "setitem" and user.args[0] is node and not user.users:
        index, value = user.args[1:]
        span = _span(index, rank)
        if span is None or not isinstance(value, fx.Node) or node in nodes_in(index):
            return None
        return _Write((user,), *span, value)
    call, [*after] = canonical(user), user.users
    if call is None or call.name not in ("getitem", "narrow") or call["input"] is not node:
        return None
    if len(after) != 1 or after[0].op != "call_method" or after[0].target != "copy_":
        return None
    copy = after[0]
    if copy.users or copy.kwargs or len(copy.args) != 2 or copy.args[0] is not user:
        return None
    if call.name == "getitem":
        span = _span(call["index"], rank)
    else:
        span = _narrowed(call["dim"], call["start"], call["length"], rank)
    value = copy.args[1]
    if span is None or not isinstance(value, fx.Node):
        return None
    return _Write((user, copy), *span, value)


def _narrowed(dim: Any, start: Any, length: Any, rank: int) -> tuple[int, Any, Any] | None:
    if not all(isinstance(number, int) for number in (dim, start, length)):
        return None
    return dim % rank, start, start + length


def _span(index: Any, rank: int) -> tuple[int, Any, Any] | None:
    """Return the axis along which an index takes a slice of a map, its start and its stop."""
    entries = list(cast("tuple[Any, ...]", index)) if isinstance(index, tuple) else [index]
    if sum(entry is Ellipsis for entry in entries) == 1:
        at = next(i for i, entry in enumerate(entries) if entry is Ellipsis)
        entries[at : at + 1] = [_ALL] * (rank - len(entries) + 1)
    if len(entries) > rank or not all(isinstance(entry, slice) for entry in entries):
        return None
    cut = [axis for axis, entry in enumerate(entries) if entry != _ALL]
    if len(cut) != 1 or cut[0] == 0:
        return None
    entry = entries[cut[0]]
    return (cut[0], entry.start or 0, entry.stop) if entry.step in (None, 1) else None


def _in_a_row(
    writes: list[_Write], shape: tuple[int, ...], sizes: tuple[Any, ...] | None
) -> list[_Write]:
    """Return the writes in order: each starts at the end of the one before, whatever the size.

    Args:
        writes: the slices that are overwritten.
        shape: of the new map.
        sizes: what it was made of; None where another value told.

    Raises:
        RefusedError: when they do not.
    """
    axis, rest, end = writes[0].axis, list(writes), cast("Any", 0)
    ordered = list[_Write]()
    total = sizes[axis] if sizes is not None and len(sizes) == len(shape) else None
    while rest:
        after = [write for write in rest if write.axis == axis and words(write.start) == words(end)]
        if len(after) != 1 or end is None:
            raise RefusedError(_GAPS)
        ordered += after
        rest.remove(after[0])
        end = after[0].stop
    if end is not None and not (isinstance(total, int) and end == total):
        raise RefusedError(_GAPS)
    return ordered


def _check(lifter: Lifter, node: fx.Node, shape: tuple[int, ...], write: _Write) -> None:
    """Refuse a value that has not the shape, type and device of the slice that it is written to."""
    value = write.value
    if value in lifter.tainted:
        raise RefusedError(lifter.tainted[value])
    if not _fits(lifter, node, shape, write):
        raise RefusedError(f"{place_of(value)} may be spread over its slice for another input")
    likes, is_placed = kinds_of(node), name_of(node) not in OF_SIZES or "device" in node.kwargs
    if not likes or not is_placed or not all(same_kind(lifter, like, value) for like in likes):
        raise RefusedError(f"{place_of(value)} may have another precision or device")


def _fits(lifter: Lifter, node: fx.Node, shape: tuple[int, ...], write: _Write) -> bool:
    """Say whether a value has the shape of the slice that it is written to, at any size."""
    value, axis = write.value, write.axis
    given = lifter.shape(value)
    if given is None or not has_shape_of(lifter, node, value, but=axis):
        return False
    total, start, stop = _is_int(sizes_of(node), axis), write.start, write.stop
    is_told = isinstance(start, int) and isinstance(stop, int | None)
    if is_told:
        if given[axis] != len(range(shape[axis])[start:stop]):
            return False
        is_told = total or (start < 0) == (stop is None or stop < 0)
    return given[axis] > 1 or is_told  # a single channel may be written to any number of them


def _is_int(sizes: tuple[Any, ...] | None, axis: int) -> bool:
    return sizes is not None and axis < len(sizes) and isinstance(sizes[axis], int)
