"""Changes of layout: reshapes, transposes, and the shuffles of channels and places they spell.

Where the channel axis of a value lies is known by its rank (the number of axes after it), which the
neighbours give: so most of these are lifted only once the rank of what they read is known.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from refold.algebra.operator import Flatten, Patches, Resample, Select, blocks, sequence
from refold.algebra.row import Reshaped, Unflatten
from refold.graph.calls import Call, canonical
from refold.graph.lift.context import Context, Handler, Shape
from refold.graph.lift.indexing import axes_of
from refold.graph.lift.piece import Lifted, Piece, RankedOp, nothing, relayout, unary
from refold.graph.lift.windows import conv_axes, tuple_of
from refold.graph.trace.overridden import layer_class


def _reshape(context: Context, node: fx.Node, call: Call) -> Lifted:
    source = call["input"]
    before, after = context.shape(source), context.shape(node)
    if before is None or after is None:
        return None
    meaning = partial(_reshaped, before, after, call)
    spelled = _shuffled(context, node, after) or _in_blocks(context, node, after)
    return spelled or relayout(source, meaning)


def _reshaped(before: Shape, after: Shape, call: Call, rank: int) -> RankedOp | None:
    """Return what a reshape means when it keeps the channel axis whole, or lays maps in rows.

    Maps may have any number of axes before their channels: frames of clips, steps in time.
    """

    def kept(out: int) -> RankedOp:
        axes = len(before) - 1 - rank, len(after) - 1 - out
        counted = _counts(call, len(before), len(after), *axes)
        return Reshaped(partial(_reshape_to, after), out, 1.0, rank, counted), out

    ones, more = (1,) * (len(after) - 2), len(after) - len(before)
    if rank == 0 and after and after[-1] == before[-1]:
        return kept(0)
    if rank == 0 and more > 0 and after == (*before, *(1,) * more):
        return kept(more)
    if (
        rank
        and min(len(before), len(after)) > rank + 1
        and after[-1 - rank :] == before[-1 - rank :]
    ):
        lead = len(before) - 1 - rank, len(after) - 1 - rank
        function = partial(_regroup, after[: lead[1]], rank)
        counted = _counts(call, len(before), len(after), *lead)
        return Reshaped(function, rank, 1.0, rank, counted), rank
    if len(before) != rank + 2 or len(after) < 2 or after[0] != before[0]:
        return None
    channels, size, positions = before[1], before[2:], prod(before[2:])
    if rank and after[1] == channels and prod(after[2:]) == positions:
        return kept(len(ones))
    if rank and after[1:] == (channels * positions, *ones):
        return Flatten(size, len(ones)), len(ones)
    if ones and positions == 1 and prod(after[1:]) == channels:
        return Unflatten(after[2:], rank), len(ones)
    return None


def _counts(call: Call, before: int, after: int, old: int, new: int) -> bool:
    """Return whether a reshape only works on this many channels.

    Args:
        call: the reshape.
        before: axes of what it reads.
        after: axes of its value.
        old: the channel axis of what it reads.
        new: the channel axis of its value.
    """
    if call.name in ("flatten", "unsqueeze"):
        return False
    if call.name == "squeeze":  # a single channel would go
        dims = None if call["dim"] is None else tuple_of(call["dim"], 1)
        return dims is None or any(dim % before == old for dim in dims)
    if call.name == "reshape_as":
        return True
    sizes, start = call["shape"], call.arguments.get("dim", 0) % before
    if not isinstance(sizes, (tuple, list)) or (
        "dim" not in call.arguments and len(sizes) != after
    ):
        return True
    inside = start <= new < start + len(sizes)
    return inside and sizes[new - start] != -1


def _reshape_to(shape: Shape, x: Tensor) -> Tensor:
    """Reshape a map of any batch and channels as the traced call did with its own."""
    return x.reshape(x.shape[0], *shape[1:]) if x.numel() == prod(shape) else x.flatten(2)


def _regroup(lead: Shape, rank: int, x: Tensor) -> Tensor:
    """Lay the axes before the channels out anew, for any number of what is batched."""
    return x.reshape(-1, *lead[1:], *x.shape[-1 - rank :])


def shuffle_index(channels: int, groups: int) -> tuple[int, ...]:
    """Return the channel order of ShuffleNet's shuffle: view (groups, n), transpose, flatten."""
    order = torch.arange(channels).reshape(groups, -1).T.flatten()
    return tuple(int(i) for i in order.tolist())


def _shuffle(context: Context, node: fx.Node, call: Call) -> Lifted:
    shape = context.shape(call["input"])
    if shape is None:
        return None
    op = Select(shuffle_index(shape[1], call["groups"]), shape[1])
    return unary(call["input"], op, rank=len(shape) - 2)


def _turned(node: fx.Node) -> tuple[fx.Node, list[fx.Node], list[str]] | None:
    """Return what a reshape of a turned reshape reads first, the calls between, and their names."""
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
    return current, chain, names


def _shuffled(context: Context, node: fx.Node, after: Shape) -> Piece | None:
    """Recognise view (groups, n), transpose, flatten back: a channel shuffle by its shapes."""
    found = _turned(node)
    if found is None:
        return None
    current, chain, names = found
    before, middle = context.shape(current), context.shape(chain[-1])
    turned = context.shape(next(n for n, name in zip(chain, names, strict=True) if name != "same"))
    if before != after or middle is None or turned is None or before is None or len(before) < 3:
        return None
    groups, width = (middle[1], middle[2]) if len(middle) == len(before) + 1 else (0, 0)
    swapped = (middle[0], width, groups, *middle[3:])
    if groups * width != before[1] or middle[3:] != before[2:] or turned != swapped:
        return None
    if not _swaps_axes_1_2(
        next(n for n, name in zip(chain, names, strict=True) if name in ("transpose", "permute"))
    ):
        return None
    op = Select(shuffle_index(before[1], groups), before[1])
    rank = len(before) - 2
    return Piece((current,), (op,), rank_in=rank, rank_out=rank, through=tuple(chain))


def _in_blocks(context: Context, node: fx.Node, after: Shape) -> Piece | None:
    """Recognise view (C, h, r, w, s), permute, flatten: blocks of positions become channels."""
    found = _turned(node)
    if found is None or found[2].count("permute") != 1 or "transpose" in found[2]:
        return None
    source, chain, names = found
    before, middle = context.shape(source), context.shape(chain[-1])
    cut, turn = canonical(chain[-1]), canonical(chain[names.index("permute")])
    if before is None or middle is None or cut is None or turn is None or len(before) < 3:
        return None
    rank, sizes = len(before) - 2, cut.arguments.get("shape")
    steps, dims = middle[3::2], tuple_of(turn["dims"], 1)
    if len(middle) != 2 + 2 * rank or middle[:2] != before[:2]:
        return None
    if any(a * b != n for a, b, n in zip(middle[2::2], steps, before[2:], strict=True)):
        return None
    if not isinstance(sizes, (tuple, list)) or len(sizes) != len(middle):
        return None
    if not all(isinstance(size, int) and size > 0 for size in sizes[3::2]):
        return None  # how large the blocks are depends on the input
    places = tuple(range(2, 2 + 2 * rank, 2))
    if dims[:1] != (0,) or dims[2 + rank :] != places or after[2:] != middle[2::2]:
        return None
    if after[:2] != (before[0], before[1] * prod(steps)):
        return None
    op = Patches(blocks(*steps), tuple((dim - 1) // 2 for dim in dims[1 : 2 + rank]))
    return Piece((source,), (op,), rank_in=rank, rank_out=rank, through=tuple(chain))


def _unshuffle(context: Context, node: fx.Node, call: Call) -> Lifted:
    shape, factor = context.shape(call["input"]), call["factor"]
    if factor == 1:
        return nothing(call["input"])
    if not isinstance(factor, int) or (shape is not None and len(shape) != 4):
        return None
    return unary(call["input"], Patches(blocks(factor, factor), (0, 1, 2)), rank=2)


def _patches(context: Context, node: fx.Node, call: Call) -> Lifted:
    kernel = tuple_of(call["kernel_size"], 2)
    axes = conv_axes(kernel, call["stride"], call["padding"], call["dilation"])
    in_row = Reshaped(partial(torch.flatten, start_dim=-2), 1, 1.0, 2)
    return unary(call["input"], sequence(Patches(axes, (0, 1, 2)), in_row), rank=2, rank_out=1)


def _placed(context: Context, node: fx.Node, call: Call) -> Lifted:
    """Lift what lays a row of places out as a map, one for each."""
    sizes = {key: call[key] for key in ("output_size", "kernel_size")}
    steps = {n for key in ("kernel_size", "stride") for n in tuple_of(call[key], 2)}
    if steps != {1} or any(tuple_of(call["padding"], 2)):
        return None
    return unary(call["input"], Reshaped(partial(F.fold, **sizes), 2, 1.0, 1), rank=1, rank_out=2)


def _swaps_axes_1_2(node: fx.Node) -> bool:
    call = canonical(node)
    assert call is not None
    if call.name == "transpose":
        return {call["dim0"], call["dim1"]} == {1, 2}
    dims = list(call["dims"])
    return dims == [0, 2, 1, *range(3, len(dims))]


def _transpose(context: Context, node: fx.Node, call: Call) -> Lifted:
    shape = context.shape(call["input"])

    def by_rank(rank: int) -> RankedOp | None:
        count = axes_of(shape, rank)
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
    if rank >= count:
        return None
    out = count - 1 - order.index(count - 1 - rank)
    if order[0] != 0 or (out and order.index(count - 1 - rank) != 1):
        return None
    return Resample(partial(torch.permute, dims=tuple(order)), out, 1.0, rank), out


def layout_call(module: nn.Module, source: fx.Node) -> Call | None:
    """Return the call that a layer of torch.nn stands for, None for one that changes no layout."""
    kind = layer_class(module)
    if isinstance(module, nn.Flatten) and kind is nn.Flatten:
        return Call("flatten", {"input": source})
    if isinstance(module, nn.Unflatten) and kind is nn.Unflatten:
        sizes = {"shape": module.unflattened_size, "dim": module.dim}
        return Call("reshape", {"input": source, **sizes})
    if isinstance(module, nn.ChannelShuffle) and kind is nn.ChannelShuffle:
        return Call("channel_shuffle", {"input": source, "groups": module.groups})
    if isinstance(module, (nn.Unfold, nn.Fold)) and kind in (nn.Unfold, nn.Fold):
        given = {name: getattr(module, name) for name in module.__constants__}
        return Call("im2col" if kind is nn.Unfold else "col2im", {"input": source, **given})
    if isinstance(module, nn.PixelUnshuffle) and kind is nn.PixelUnshuffle:
        return Call("pixel_unshuffle", {"input": source, "factor": module.downscale_factor})
    return None


LAYOUT: dict[str, Handler] = {
    "channel_shuffle": _shuffle,
    "col2im": _placed,
    "flatten": _reshape,
    "im2col": _patches,
    "reshape": _reshape,
    "reshape_as": _reshape,
    "squeeze": _reshape,
    "unflatten": _reshape,
    "unsqueeze": _reshape,
    "transpose": _transpose,
    "permute": _transpose,
    "pixel_unshuffle": _unshuffle,
}
