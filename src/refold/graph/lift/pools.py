"""Pools, pads, resizing, flips and rolls: calls that move positions and treat channels alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from refold.algebra.operator import AvgPool, Pad, Resample, Select
from refold.graph.calls import Call
from refold.graph.lift.context import Context, Handler
from refold.graph.lift.indexing import axes_of, varies
from refold.graph.lift.joins.stacks import sum_of_stack
from refold.graph.lift.piece import Lifted, RankedOp, nothing, relayout, unary
from refold.graph.lift.windows import pool_axes, tuple_of


def _pad(context: Context, node: fx.Node, call: Call) -> Lifted:
    pad, mode = call["pad"], call.arguments.get("mode", "constant")
    flat = tuple_of(pad, 1)
    value = context.number(call["value"]) if call["value"] is not None else 0.0
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


def _avg_pool(context: Context, node: fx.Node, call: Call) -> Lifted:
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


def _pool_inside(
    pool: Any, kernel: list[int], stride: list[int], padding: list[int], x: Tensor
) -> Tensor:
    return pool(x, kernel, stride, padding, count_include_pad=False)


def _adaptive(context: Context, node: fx.Node, call: Call) -> Lifted:
    rank = int(call.name[-2])
    pools: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    function = partial(pools[rank - 1], output_size=call["output_size"])
    return unary(call["input"], Resample(function, rank, 0.0, rank), rank=rank)


def _mean(context: Context, node: fx.Node, call: Call) -> Lifted:
    dim, keep = call["dim"], bool(call["keepdim"])
    if dim is None or call["dtype"] is not None:
        return None
    if (stacked := sum_of_stack(context, node, call)) is not None:
        return stacked
    dims = tuple_of(dim, 1)
    shape = context.shape(call["input"])

    def by_rank(rank: int) -> RankedOp | None:
        count = axes_of(shape, rank)
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


def _interpolate(context: Context, node: fx.Node, call: Call) -> Lifted:
    def by_rank(rank: int) -> RankedOp | None:
        keys = ("size", "scale_factor", "mode", "align_corners")
        function = partial(F.interpolate, **{key: call[key] for key in keys})
        return (Resample(function, rank, 4.0, rank), rank) if rank else None

    return relayout(call["input"], by_rank)


# flips, rolls and copies: along the channels they choose, along other axes they move positions


def _flip(context: Context, node: fx.Node, call: Call) -> Lifted:
    if call["dims"] is None:
        return None
    dims = tuple_of(call["dims"], 1)
    return _moved(context, node, call, dims, partial(torch.flip, dims=dims))


def _roll(context: Context, node: fx.Node, call: Call) -> Lifted:
    given = call["shifts"]
    shifts = given if isinstance(given, (tuple, list)) else (given,)
    if not any(shifts):
        return nothing(call["input"]) if context.depends(call["input"]) else None
    if call["dims"] is None or not all(isinstance(shift, int) for shift in shifts):
        return None
    dims = tuple_of(call["dims"], 1)
    return _moved(context, node, call, dims, partial(torch.roll, shifts=tuple(shifts), dims=dims))


def _repeat(context: Context, node: fx.Node, call: Call) -> Lifted:
    shape, given = context.shape(call["input"]), call["dims"]
    times = given if isinstance(given, (tuple, list)) else (given,)
    if shape is None or len(times) != len(shape) or not context.depends(call["input"]):
        return None
    if not all(isinstance(count, int) and count > 0 for count in times):
        return None
    dims = tuple(axis for axis, count in enumerate(times) if count > 1)
    if not dims:
        return nothing(call["input"])
    return _moved(context, node, call, dims, partial(torch.tile, dims=tuple(times)))


def _repeat_each(context: Context, node: fx.Node, call: Call) -> Lifted:
    times, dim = call["repeats"], call["dim"]
    if not isinstance(times, int) or not isinstance(dim, int) or times < 1:
        return None
    function = partial(torch.repeat_interleave, repeats=times, dim=dim)
    return _moved(context, node, call, (dim,), function)


def _moved(
    context: Context,
    node: fx.Node,
    call: Call,
    dims: tuple[int, ...],
    function: Callable[[Tensor], Tensor],
) -> Lifted:
    """Return the piece of a function that moves numbers along some axes, the batch not among them.

    Args:
        context: what is known of the graph.
        node: the call.
        call: its arguments.
        dims: the axes.
        function: what it does to a value of as many axes.
    """
    shape = context.shape(call["input"])

    def by_rank(rank: int) -> RankedOp | None:
        count = axes_of(shape, rank)
        if count is None:
            return None
        axes, channel = {dim % count for dim in dims}, count - 1 - rank
        if 0 in axes or (channel in axes and len(axes) > 1):
            return None
        if channel not in axes:
            grown = function(torch.empty((1,) * count, device="meta")).numel()
            return Resample(function, rank, float(grown), rank), rank
        if shape is None or varies(node, rank):
            return None
        order = torch.arange(shape[channel]).reshape(*(1,) * channel, -1, *(1,) * rank)
        return Select(tuple(function(order).flatten().tolist()), shape[channel]), rank

    return relayout(call["input"], by_rank)


WINDOWS: dict[str, Handler] = {
    "pad": _pad,
    "constant_pad": _pad,
    **{f"avg_pool{rank}d": _avg_pool for rank in (1, 2, 3)},
    **{f"adaptive_pool{rank}d": _adaptive for rank in (1, 2, 3)},
    "mean": _mean,
    "interpolate": _interpolate,
    "flip": _flip,
    "roll": _roll,
    "repeat": _repeat,
    "repeat_interleave": _repeat_each,
}
