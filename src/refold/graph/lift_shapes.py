"""Calls that move positions and channels: pools, pads, slices, concatenations and changes of layout.

Where the channel axis of a value lies is known by its rank (the number of axes after it), which the neighbours give: so most of
these are lifted only once the rank of what they read is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from refold.algebra.geometry import Axis
from refold.algebra.operator import AvgPool, Flatten, Identity, Operator, Pad, Resample, Select, sequence
from refold.graph.calls import Call, canonical
from refold.graph.piece import Lifted, Piece, RankedOp, relayout, unary
from refold.graph.windows import pool_axes, tuple_of

if TYPE_CHECKING:
    from refold.graph.lift import Lifter

Shape = tuple[int, ...]
ShapeHandler = Callable[["Lifter", fx.Node, Call], Lifted]


def _axes_of(shape: Shape | None, rank: int) -> int | None:
    """Return how many axes a value has; a map without known shape is taken to be batched."""
    return len(shape) if shape is not None else rank + 2 if rank else None


def _cat(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    tensors, dim = call["tensors"], call["dim"]
    if not isinstance(tensors, Sequence) or not isinstance(dim, int):
        return None
    sources = [item for item in cast("Sequence[Any]", tensors) if isinstance(item, fx.Node)]
    if len(sources) < 2 or len(sources) < len(tensors):
        return None
    shape = lifter.shape(sources[0])
    ops = (Identity(),) * len(sources)
    if dim < 0 or shape is not None:
        rank = -dim - 1 if dim < 0 else len(shape or ()) - 1 - dim
        return Piece(tuple(sources), ops, "concat", rank, rank)
    by_rank = lambda rank: (Identity(), rank) if rank and dim == 1 else None  # noqa: E731
    return Piece(tuple(sources), ops, "concat", by_rank=by_rank) if dim == 1 else None


def _channels(shape: Shape | None, rank: int) -> int | None:
    return shape[len(shape) - 1 - rank] if shape is not None and len(shape) > rank else None


def _getitem(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    source, index = call["input"], call["index"]
    if isinstance(index, int) and isinstance(source, fx.Node):
        inner = canonical(source)
        if inner is not None and inner.name in ("chunk", "split"):
            return _part(lifter, source, inner, index)
        return None
    entries = index if isinstance(index, tuple) else (index,)
    if not isinstance(source, fx.Node) or not all(e is Ellipsis or _is_plain(e) for e in entries):
        return None
    shape = lifter.shape(source)

    def by_rank(rank: int) -> RankedOp | None:
        count = _axes_of(shape, rank)
        slices = None if count is None else _spread(entries, count)
        return None if slices is None else _sliced(slices, rank, _channels(shape, rank))

    return relayout(source, by_rank)


def _is_plain(entry: Any) -> bool:
    parts = (entry.start, entry.stop, entry.step) if isinstance(entry, slice) else (entry,)
    return isinstance(entry, slice) and all(p is None or isinstance(p, int) for p in parts)


def _spread(entries: tuple[Any, ...], count: int) -> list[slice] | None:
    """Return one slice per axis, the ellipsis spelled out."""
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        middle = (slice(None),) * (count - len(entries) + 1)
        entries = (*entries[:at], *middle, *entries[at + 1 :])
    full = [*entries, *(slice(None),) * (count - len(entries))]
    return full if len(full) == count else None


def _sliced(slices: list[slice], rank: int, channels: int | None) -> RankedOp | None:
    at = len(slices) - 1 - rank
    if any(s != slice(None) for s in slices[:at]):
        return None
    ops: list[Operator] = []
    if slices[at] != slice(None):
        if channels is None:
            return None
        ops.append(Select(tuple(range(channels))[slices[at]], channels))
    spatial = slices[at + 1 :]
    if any((s.start or 0) < 0 or (s.stop or -1) > 0 or s.stop == 0 for s in spatial):
        return None
    if any((s.step or 1) != 1 for s in spatial):
        if any(s.stop is not None for s in spatial):
            return None
        ops.append(AvgPool(tuple(Axis(1, s.step or 1, 1, -(s.start or 0)) for s in spatial)))
    elif any(s != slice(None) for s in spatial):
        ops.append(Pad(tuple((-(s.start or 0), s.stop or 0) for s in spatial)))
    return sequence(*ops), rank


def _part(lifter: Lifter, splitter: fx.Node, call: Call, index: int) -> Lifted:
    """Lift one part of a chunk or split along the channels."""
    source, dim = call["input"], call["dim"]
    shape = lifter.shape(source)
    if shape is None or not isinstance(dim, int):
        return None
    axis = dim % len(shape)
    size, rank = shape[axis], len(shape) - 1 - axis
    bounds = _bounds(call, size)
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
    if isinstance(step, int):
        return [(i, min(i + step, size)) for i in range(0, size, step)]
    if not isinstance(step, (list, tuple)) or not all(isinstance(n, int) for n in cast("list[Any]", step)):
        return None
    bounds: list[tuple[int, int]] = []
    for width in cast("list[int]", step):
        start = bounds[-1][1] if bounds else 0
        bounds.append((start, start + width))
    return bounds


def _slice(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    """Lift aten's slice of one axis; an end beyond every size means the end."""
    dim, end = call["dim"], call["end"]
    end = None if isinstance(end, int) and end > 1 << 60 else end
    parts = (call["start"], end, call["step"])
    shape = lifter.shape(call["input"])
    if not all(p is None or isinstance(p, int) for p in parts) or shape is None:
        return None
    entries = [slice(None)] * len(shape)
    entries[dim] = slice(parts[0] or None, end, None if parts[2] == 1 else parts[2])
    if end is not None and end == shape[dim]:
        entries[dim] = slice(entries[dim].start, None, entries[dim].step)
    return relayout(call["input"], lambda rank: _sliced(entries, rank, _channels(shape, rank)))


def _narrow(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    shape, dim = lifter.shape(call["input"]), call["dim"]
    start, length = call["start"], call["length"]
    if shape is None or not all(isinstance(v, int) for v in (dim, start, length)):
        return None
    rank = len(shape) - 1 - dim % len(shape)
    op = Select(tuple(range(start, start + length)), shape[dim])
    return unary(call["input"], op, rank=rank) if dim % len(shape) else None


def _index_select(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    shape, index = lifter.shape(call["input"]), lifter.tensor(call["index"])
    if shape is None or index is None or not isinstance(call["dim"], int):
        return None
    axis = call["dim"] % len(shape)
    op = Select(tuple(int(i) for i in index.tolist()), shape[axis])
    return unary(call["input"], op, rank=len(shape) - 1 - axis) if axis else None


def shuffle_index(channels: int, groups: int) -> tuple[int, ...]:
    """Return the channel order of ShuffleNet's shuffle: view (groups, n), transpose, flatten."""
    order = torch.arange(channels).reshape(groups, -1).T.flatten()
    return tuple(int(i) for i in order.tolist())


def _shuffle(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    shape = lifter.shape(call["input"])
    if shape is None:
        return None
    op = Select(shuffle_index(shape[1], call["groups"]), shape[1])
    return unary(call["input"], op, rank=len(shape) - 2)


def _pad(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    pad, mode = call["pad"], call.arguments.get("mode", "constant")
    flat = tuple_of(pad, 1)
    value = lifter.number(call["value"]) if call["value"] is not None else 0.0
    if value is None or len(flat) % 2:
        return None
    pairs = tuple((flat[2 * i], flat[2 * i + 1]) for i in reversed(range(len(flat) // 2)))
    name = "zeros" if mode == "constant" else str(mode)
    fill = float(value) if name == "zeros" else 0.0

    def by_rank(rank: int) -> RankedOp | None:
        if len(pairs) > rank:
            return None
        return Pad((*((0, 0),) * (rank - len(pairs)), *pairs), name, fill), rank

    return relayout(call["input"], by_rank)


def _avg_pool(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    rank = int(call.name[-2])
    if call["ceil_mode"]:
        return "ceil_mode makes border windows depend on the input's size"
    axes = pool_axes(rank, call["kernel_size"], call["stride"], call["padding"])
    divisor = call["divisor_override"]
    if not call["count_include_pad"] and any(axis.pads for axis in axes) and divisor is None:
        pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
        sizes = [axis.kernel for axis in axes], [axis.stride for axis in axes], [a.lo for a in axes]
        function = partial(_pool_inside, pool, *sizes)
        return unary(call["input"], Resample(function, rank, 0.5, rank), rank=rank)
    return unary(call["input"], AvgPool(axes, divisor), rank=rank)


def _pool_inside(pool: Any, kernel: list[int], stride: list[int], padding: list[int], x: Tensor) -> Tensor:
    return pool(x, kernel, stride, padding, count_include_pad=False)


def _adaptive(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    rank = int(call.name[-2])
    pools: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    function = partial(pools[rank - 1], output_size=call["output_size"])
    return unary(call["input"], Resample(function, rank, 0.0, rank), rank=rank)


def _mean(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    dim, keep = call["dim"], bool(call["keepdim"])
    if dim is None or call["dtype"] is not None:
        return None
    dims = tuple_of(dim, 1)
    shape = lifter.shape(call["input"])

    def by_rank(rank: int) -> RankedOp | None:
        count = _axes_of(shape, rank)
        if count is None:
            return None
        axes = {d % count for d in dims}
        channel = count - 1 - rank
        after = sum(1 for axis in axes if axis > channel)
        if channel in axes or 0 in axes:
            return None
        out = rank if keep else rank - after
        return Resample(partial(torch.mean, dim=dims, keepdim=keep), out, 0.0, rank), out

    return relayout(call["input"], by_rank)


def _interpolate(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    def by_rank(rank: int) -> RankedOp | None:
        keys = ("size", "scale_factor", "mode", "align_corners")
        function = partial(F.interpolate, **{key: call[key] for key in keys})
        return (Resample(function, rank, 4.0, rank), rank) if rank else None

    return relayout(call["input"], by_rank)


def _reshape(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    source = call["input"]
    before, after = lifter.shape(source), lifter.shape(node)
    if before is None or after is None:
        return None
    return _shuffled(lifter, node, after) or relayout(source, partial(_reshaped, before, after))


def _reshaped(before: Shape, after: Shape, rank: int) -> RankedOp | None:
    """Return what a reshape means when it keeps the channel axis whole, or lays it out in a row."""
    resample = partial(_reshape_to, after)
    if rank == 0 and after and after[-1] == before[-1]:
        return Resample(resample, 0, 1.0, 0), 0
    if rank == 0 and len(after) > len(before) and after == (*before, *(1,) * (len(after) - len(before))):
        return Resample(resample, len(after) - len(before), 1.0, 0), len(after) - len(before)
    if rank and len(before) == rank + 2 and len(after) >= 2 and after[0] == before[0]:
        positions = prod(before[2:])
        if after[1] == before[1] and prod(after[2:]) == positions:
            return Resample(resample, len(after) - 2, 1.0, rank), len(after) - 2
        if after[1:] == (before[1] * positions,):
            return Flatten(positions), 0
    return None


def _reshape_to(shape: Shape, x: Tensor) -> Tensor:
    """Reshape a map of any batch and channels as the traced call did with its own."""
    return x.reshape(x.shape[0], *shape[1:]) if x.numel() == prod(shape) else x.flatten(2)


def _shuffled(lifter: Lifter, node: fx.Node, after: Shape) -> Piece | None:
    """Recognise view (groups, n), transpose, flatten back: a channel shuffle by its shapes."""
    chain: list[fx.Node] = []
    current: Any = node.args[0]
    names: list[str] = []
    while isinstance(current, fx.Node) and len(chain) < 3:
        call = canonical(current)
        if call is None or call.name not in ("same", "transpose", "permute", "reshape"):
            break
        chain.append(current)
        names.append(call.name)
        current = call["input"]
        if call.name == "reshape":
            break
    if not names or names[-1] != "reshape" or not {"transpose", "permute"} & set(names):
        return None
    before, middle = lifter.shape(current), lifter.shape(chain[-1])
    turned = lifter.shape(next(n for n, name in zip(chain, names, strict=True) if name != "same"))
    if before != after or middle is None or turned is None or before is None or len(before) < 3:
        return None
    groups, width = (middle[1], middle[2]) if len(middle) == len(before) + 1 else (0, 0)
    swapped = (middle[0], width, groups, *middle[3:])
    if groups * width != before[1] or middle[3:] != before[2:] or turned != swapped:
        return None
    if not _swaps_axes_1_2(next(n for n, name in zip(chain, names, strict=True) if name in ("transpose", "permute"))):
        return None
    op = Select(shuffle_index(before[1], groups), before[1])
    rank = len(before) - 2
    return Piece((current,), (op,), rank_in=rank, rank_out=rank, through=tuple(chain))


def _swaps_axes_1_2(node: fx.Node) -> bool:
    call = canonical(node)
    assert call is not None
    if call.name == "transpose":
        return {call["dim0"], call["dim1"]} == {1, 2}
    dims = list(call["dims"])
    return dims == [0, 2, 1, *range(3, len(dims))]


def _transpose(lifter: Lifter, node: fx.Node, call: Call) -> Lifted:
    shape = lifter.shape(call["input"])

    def by_rank(rank: int) -> RankedOp | None:
        count = _axes_of(shape, rank)
        if count is None:
            return None
        if call.name == "transpose":
            order = list(range(count))
            a, b = call["dim0"] % count, call["dim1"] % count
            order[a], order[b] = order[b], order[a]
        else:
            order = [d % count for d in tuple_of(call["dims"], 1)]
        return _reordered(order, rank)

    return relayout(call["input"], by_rank)


def _reordered(order: list[int], rank: int) -> RankedOp | None:
    count = len(order)
    out = count - 1 - order.index(count - 1 - rank)
    if order[0] != 0 or (out and order.index(count - 1 - rank) != 1):
        return None
    return Resample(partial(torch.permute, dims=tuple(order)), out, 1.0, rank), out


SHAPE_HANDLERS: dict[str, ShapeHandler] = {
    "cat": _cat,
    "getitem": _getitem,
    "slice": _slice,
    "narrow": _narrow,
    "index_select": _index_select,
    "channel_shuffle": _shuffle,
    "pad": _pad,
    "constant_pad": _pad,
    **{f"avg_pool{rank}d": _avg_pool for rank in (1, 2, 3)},
    **{f"adaptive_pool{rank}d": _adaptive for rank in (1, 2, 3)},
    "mean": _mean,
    "interpolate": _interpolate,
    "flatten": _reshape,
    "reshape": _reshape,
    "reshape_as": _reshape,
    "squeeze": _reshape,
    "unsqueeze": _reshape,
    "transpose": _transpose,
    "permute": _transpose,
}
