"""Parts of a value by index, and values side by side."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, cast

from torch import fx

from refold.algebra.geometry import Axis
from refold.algebra.operator import AvgPool, Identity, Operator, Pad, Resample, Select, sequence
from refold.graph.calls import SPLITS, Call, canonical
from refold.graph.lift.context import Context, Handler, Shape
from refold.graph.lift.piece import Lifted, Piece, RankedOp, nothing, relayout, unary


def axes_of(shape: Shape | None, rank: int) -> int | None:
    """Return how many axes a value has; a map without known shape is taken to be batched."""
    if shape is not None:
        return len(shape) if rank < len(shape) else None
    return rank + 2 if rank else None


def _cat(context: Context, node: fx.Node, call: Call) -> Lifted:
    tensors, dim = call["tensors"], call["dim"]
    if not isinstance(tensors, Sequence) or not isinstance(dim, int):
        return None
    sources = [item for item in cast("Sequence[Any]", tensors) if isinstance(item, fx.Node)]
    if len(sources) < 2 or len(sources) < len(tensors):
        return None
    shape = context.shape(sources[0])
    ops = (Identity(),) * len(sources)
    if dim < 0 or shape is not None:
        rank = -dim - 1 if dim < 0 else len(shape or ()) - 1 - dim
        return Piece(tuple(sources), ops, "concat", rank, rank)
    if dim != 1:
        return None
    return Piece(tuple(sources), ops, "concat", by_rank=_batched)


def _batched(rank: int) -> RankedOp | None:
    """Axis 1 of a batched map holds the channels; what it holds of a vector nobody says."""
    return (Identity(), rank) if rank else None


def _channels(shape: Shape | None, rank: int) -> int | None:
    return shape[len(shape) - 1 - rank] if shape is not None and len(shape) > rank else None


def _hstack(context: Context, node: fx.Node, call: Call) -> Lifted:
    return _cat(context, node, Call("cat", {"tensors": call["tensors"], "dim": 1}))


def _getitem(context: Context, node: fx.Node, call: Call) -> Lifted:
    source, index = call["input"], call["index"]
    if isinstance(index, int) and isinstance(source, fx.Node):
        inner = canonical(source)
        if inner is not None and inner.name in SPLITS:
            return _part(context, source, inner, index)
        return None
    entries = tuple(
        context.indices(entry) for entry in (index if isinstance(index, tuple) else (index,))
    )
    if not isinstance(source, fx.Node) or not all(_is_plain(entry) for entry in entries):
        return None
    shape = context.shape(source)
    if _takes_all(context, node, source, entries):
        return nothing(source)

    def by_rank(rank: int) -> RankedOp | None:
        count = axes_of(shape, rank)
        slices = None if count is None else _spread(entries, count)
        if slices is None:
            return None
        if not rank and any(entry != slice(None) for entry in slices[:-1]):
            return _rows(slices)
        if any(isinstance(s, int) for s in slices):
            return _position(slices, rank, shape and shape[len(shape) - rank :])
        return _sliced(node, slices, rank, shape)

    return relayout(source, by_rank)


def _takes_all(context: Context, node: fx.Node, source: fx.Node, entries: tuple[Any, ...]) -> bool:
    """Say whether an index takes all channels of a map, as `y[:, :12]` of twelve does."""
    shape, piece = context.shape(source), context.lift(source)
    if shape is None:
        return False
    rank, slices = len(shape) - 2, _spread(entries, len(shape))
    if slices is None or not isinstance(piece, Piece) or piece.rank_out != rank or rank < 1:
        return False
    entry, others = slices[1], (slices[0], *slices[2:])
    if not isinstance(entry, slice) or any(other != slice(None) for other in others):
        return False
    whole = range(shape[1])[entry] == range(shape[1])
    return whole and (entry.stop is None or entry.stop > 0) and not varies(node, rank)


def varies(node: fx.Node, rank: int) -> bool:
    """Say whether the axis that a call chooses along has other sizes for other inputs.

    Args:
        node: the call.
        rank: how many axes follow that one.
    """
    return rank in node.meta.get("varies", ())


def _is_plain(entry: Any) -> bool:
    if isinstance(entry, slice):
        parts = (entry.start, entry.stop, entry.step)
        return all(p is None or isinstance(p, int) for p in parts)
    return entry is Ellipsis or (isinstance(entry, (int, list)) and not isinstance(entry, bool))


def _position(entries: list[Any], rank: int, sizes: Shape | None) -> RankedOp | None:
    """Return the choice of positions along some axes: `x[:, :, 0, 0]` of a pooled map."""
    at = len(entries) - rank
    kept = all(entry == slice(None) for entry in entries[:at])
    return _places(entries[at:], sizes) if kept and rank else None


def _places(entries: list[Any], sizes: Shape | None) -> RankedOp | None:
    """Return the choice of some positions of every channel; an axis of one alone goes.

    Args:
        entries: for each axis behind the channels.
        sizes: of these axes, where known: they tell what a layer behind them costs.
    """
    rank = len(entries)
    left = sum(isinstance(entry, slice) for entry in entries)
    if not all(isinstance(entry, (int, slice)) for entry in entries) or (left and sizes is None):
        return None
    pairs = zip(sizes or (), entries, strict=True) if left else ()
    counts = ((n, len(range(n)[e]) if isinstance(e, slice) else 1) for n, e in pairs)
    share = prod(chosen / max(n, 1) for n, chosen in counts) if left else 0.0
    return Resample(operator.itemgetter((..., *entries)), left, share, rank), left


def _rows(entries: list[Any]) -> RankedOp | None:
    """Return the choice of some rows of (N, L, C): `x[:, 0]`, a class token."""
    batch, *places, channels = entries
    whole = batch == slice(None) == channels
    if not whole or any(isinstance(entry, list) for entry in places):
        return None
    density = 0.0 if any(isinstance(entry, int) for entry in places) else 1.0
    return Resample(operator.itemgetter((batch, *places)), 0, density, 0), 0


def _spread(entries: tuple[Any, ...], count: int) -> list[Any] | None:
    """Return one entry per axis, the ellipsis spelled out."""
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        middle = (slice(None),) * (count - len(entries) + 1)
        entries = (*entries[:at], *middle, *entries[at + 1 :])
    full = [*entries, *(slice(None),) * (count - len(entries))]
    return full if len(full) == count else None


def _sliced(node: fx.Node, slices: list[Any], rank: int, shape: Shape | None) -> RankedOp | None:
    at = len(slices) - 1 - rank
    channels = None if varies(node, rank) else _channels(shape, rank)
    spatial = slices[at + 1 :]
    if any(s != slice(None) for s in slices[:at]) or any(isinstance(s, list) for s in spatial):
        return None
    ops: list[Operator] = []
    if slices[at] != slice(None):
        if channels is None:
            return None
        ops.append(_choice(slices[at], channels))
    from_size = any((s.start or 0) < 0 or (s.stop or -1) > 0 or s.stop == 0 for s in spatial)
    steps = any((s.step or 1) != 1 for s in spatial)
    if from_size or (steps and any(s.stop is not None for s in spatial)):
        places = _places(spatial, shape and shape[at + 1 :])
        if places is None or ops:  # without its channels, what is left would be no layer of torch
            return None
        ops.append(places[0])
    elif steps:
        ops.append(AvgPool(tuple(Axis(1, s.step or 1, 1, -(s.start or 0)) for s in spatial)))
    elif any(s != slice(None) for s in spatial):
        ops.append(Pad(tuple((-(s.start or 0), s.stop or 0) for s in spatial)))
    return sequence(*ops), rank


def _choice(entry: slice | list[int], channels: int) -> Select:
    order = range(channels)
    chosen = order[entry] if isinstance(entry, slice) else [order[i] for i in entry]
    return Select(tuple(chosen), channels)


def _part(context: Context, splitter: fx.Node, call: Call, index: int) -> Lifted:
    """Lift one part of a chunk or split along the channels."""
    source, dim = call["input"], call["dim"]
    shape = context.shape(source)
    if shape is None or not isinstance(dim, int):
        return None
    axis = dim % len(shape)
    size, rank = shape[axis], len(shape) - 1 - axis
    bounds = None if varies(splitter, rank) else _bounds(call, size)
    if bounds is None or axis == 0 or not -len(bounds) <= index < len(bounds):
        return None
    start, end = bounds[index]
    op = Select(tuple(range(start, end)), size)
    return Piece((source,), (op,), rank_in=rank, rank_out=rank, through=(splitter,))


def _bounds(call: Call, size: int) -> list[tuple[int, int]] | None:
    if call.name == "chunk":
        if not isinstance(call["chunks"], int):
            return None
        step = -(-size // call["chunks"])
    else:
        step = call["split_size"]
    if call.name == "tensor_split":
        return _even_bounds(step, size)
    if isinstance(step, int):
        return [(i, min(i + step, size)) for i in range(0, size, step)]
    if not isinstance(step, (list, tuple)) or not all(
        isinstance(n, int) for n in cast("list[Any]", step)
    ):
        return None
    bounds: list[tuple[int, int]] = []
    for width in cast("list[int]", step):
        start = bounds[-1][1] if bounds else 0
        bounds.append((start, start + width))
    return bounds


def _even_bounds(count: Any, size: int) -> list[tuple[int, int]] | None:
    """Return the parts of `tensor_split`, whose first ones are longer where it does not divide."""
    if not isinstance(count, int):
        return None
    ends = [part * (size // count) + min(part, size % count) for part in range(count + 1)]
    return list(pairwise(ends))


def _slice(context: Context, node: fx.Node, call: Call) -> Lifted:
    """Lift aten's slice of one axis; an end beyond every size means the end."""
    dim, end = call["dim"], call["end"]
    end = None if isinstance(end, int) and end > 1 << 60 else end
    parts = (call["start"], end, call["step"])
    shape = context.shape(call["input"])
    if not all(p is None or isinstance(p, int) for p in parts) or shape is None:
        return None
    entries = [slice(None)] * len(shape)
    entries[dim] = slice(parts[0] or None, end, None if parts[2] == 1 else parts[2])
    if end is not None and end == shape[dim]:
        entries[dim] = slice(entries[dim].start, None, entries[dim].step)

    def by_rank(rank: int) -> RankedOp | None:
        return _sliced(node, entries, rank, shape)

    return relayout(call["input"], by_rank)


def _narrow(context: Context, node: fx.Node, call: Call) -> Lifted:
    shape, dim = context.shape(call["input"]), call["dim"]
    start, length = call["start"], call["length"]
    if shape is None or not all(isinstance(v, int) for v in (dim, start, length)):
        return None
    rank = len(shape) - 1 - dim % len(shape)
    if not dim % len(shape) or varies(node, rank):
        return None
    op = Select(tuple(range(start, start + length)), shape[dim])
    return unary(call["input"], op, rank=rank)


def _index_select(context: Context, node: fx.Node, call: Call) -> Lifted:
    shape, index = context.shape(call["input"]), context.tensor(call["index"])
    if shape is None or index is None or not isinstance(call["dim"], int):
        return None
    axis = call["dim"] % len(shape)
    rank = len(shape) - 1 - axis
    if not axis or varies(node, rank):
        return None
    op = Select(tuple(int(i) for i in index.tolist()), shape[axis])
    return unary(call["input"], op, rank=rank)


SLICES: dict[str, Handler] = {
    "cat": _cat,
    "hstack": _hstack,
    "getitem": _getitem,
    "slice": _slice,
    "narrow": _narrow,
    "index_select": _index_select,
}
