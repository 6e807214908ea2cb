"""Value ranges: what can be proven of the numbers in every value of a graph.

Every limit is proven from the operations alone, for every input. What is not recognised is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from refold.algebra.operator import (
    Affine,
    AvgPool,
    Conv,
    Identity,
    Operator,
    Pad,
    Select,
    Zero,
    chain,
    wide,
)
from refold.graph.calls import Call, canonical
from refold.graph.copies.modules import submodule
from refold.graph.lift.activations import activation
from refold.graph.lift.interval import UNKNOWN, Interval, point
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece
from refold.graph.trace.overridden import layer_class
from refold.ranked import MAX_POOLS, POOLS

ZERO = point(0.0)
_DEEP = 50  # levels of Python calls, of which each value takes several


class Ranges:
    """The interval of every value of a capture.

    Args:
        lifter: lifts the capture's nodes; it also knows constants and what is changed in place.
        weigh: read weights, so that values of convolutions have intervals, too. It takes time, and
            what is proven holds for these weights alone.

    Examples:
        >>> from refold.graph import capture
        >>> from refold.graph import Constants
        >>> [found] = capture(nn.Sequential(nn.ReLU6(), nn.MaxPool2d(2)).eval())
        >>> ranges = Ranges(Lifter(found, Constants(found), {}, {}))
        >>> [ranges.of(node) for node in found.graph.nodes][2]
        Interval(low=0.0, high=6.0)
    """

    def __init__(self, lifter: Lifter, *, weigh: bool = True) -> None:
        self.lifter = lifter
        self._weighs = weigh
        self._known: dict[fx.Node, Interval] = {}
        self._depth = 0
        if weigh:  # passes that ask for weights edit the graph as they go
            self._look_at_all()

    def of(self, value: Any) -> Interval:
        """Return the interval of a node's value or of a number."""
        if isinstance(value, fx.Node):
            known = self._known.get(value)
            return self._look(value) if known is None and not self._weighs else known or UNKNOWN
        return point(value) if isinstance(value, (int, float)) else UNKNOWN

    def _look_at_all(self) -> None:
        for node in self.lifter.capture.graph.nodes:
            if node not in self._known:
                self._known[node] = UNKNOWN if node in self.lifter.tainted else self._find(node)

    def _look(self, node: fx.Node) -> Interval:
        """Find the interval of a value, and of those that it is told from, however many."""
        if self._depth > _DEEP:
            self._look_at_all()
            return self._known.get(node, UNKNOWN)
        self._depth += 1
        found = UNKNOWN if node in self.lifter.tainted else self._find(node)
        self._depth -= 1
        self._known[node] = found
        return found

    def note(self, node: fx.Node, interval: Interval) -> None:
        """Tell the interval of a node that took another's place."""
        self._known[node] = interval

    def _find(self, node: fx.Node) -> Interval:
        constant = self.lifter.constants.value(node)
        if constant is not None:
            plain = self._weighs or not isinstance(constant, Tensor) or constant.ndim == 0
            return _of_constant(constant) if plain else UNKNOWN
        found = activation(self.lifter, node)
        if found is not None:
            return found.image(self.of(found.source))
        if node.op == "call_module":
            return self._of_layer(node)
        call = canonical(node)
        if call is not None and call.name in _CALLS:
            return _CALLS[call.name](self, call)
        name = node.target if isinstance(node.target, str) else _name(node.target)
        if name in _MAX_POOL_NAMES:
            return self.of(node.args[0])
        return self._of_piece(node)

    def _of_layer(self, node: fx.Node) -> Interval:
        path = str(node.target)
        if path in self.lifter.capture.pinned or not node.args:
            return UNKNOWN
        module = submodule(self.lifter.capture.module, path)
        source = self.of(node.args[0])
        kind = layer_class(module)
        if kind in _HULLS:
            return source
        if kind in POOLS.values() and getattr(module, "divisor_override", None) is None:
            return source.hull(ZERO)
        return self._of_piece(node)

    def _of_piece(self, node: fx.Node) -> Interval:
        piece = self.lifter.lift(node)
        if not isinstance(piece, Piece) or piece.join != "none" or piece.through:
            return UNKNOWN
        op = piece.ops[0]
        if piece.by_rank is not None:
            shape = self.lifter.shape(piece.sources[0])
            ranked = None if shape is None else piece.by_rank(len(shape) - 2)
            if not isinstance(ranked, tuple):
                return UNKNOWN
            op = ranked[0]
        parts = list(chain(op))
        for index, part in enumerate(reversed(parts)):
            if not self._weighs and _has_weights(part):  # nothing is known of what it gives
                value, parts = UNKNOWN, parts[len(parts) - index :]
                break
        else:
            value = self.of(piece.sources[0])
        for part in parts:
            value = through(part, value)
        return value


def _has_weights(op: Operator) -> bool:
    """Say whether an operator holds more than numbers that stand in the code."""
    if isinstance(op, Affine):
        return any(t is not None and t.ndim > 0 for t in (op.scale, op.shift))
    return isinstance(op, Conv)


def through(op: Operator, value: Interval) -> Interval:
    """Return the interval of `op(x)` for x within `value`.

    Examples:
        >>> through(Affine(torch.tensor([2.0, -1.0])), Interval(0, 3))
        Interval(low=-3.0, high=6.0)
    """
    if isinstance(op, (Identity, Select)):
        return value
    if isinstance(op, Zero):
        return ZERO
    if isinstance(op, Affine):
        return _through_affine(op, value)
    if isinstance(op, Conv):
        return _through_conv(op, value)
    if isinstance(op, AvgPool):
        taps = 1.0
        for axis in op.axes:
            taps *= axis.kernel
        seen = value.hull(ZERO) if op.zero_pads else value
        return seen * point(op.factor * taps)
    if isinstance(op, Pad):
        grows = op.grows and op.mode == "zeros"
        return value.hull(point(op.value)) if grows else value
    return UNKNOWN


def _through_affine(op: Affine, value: Interval) -> Interval:
    one = torch.ones((), dtype=torch.float64, device="cpu")
    scale = one if op.scale is None else wide(op.scale)
    shift = torch.zeros_like(one) if op.shift is None else wide(op.shift)
    if scale.is_complex() or scale.is_meta or shift.is_meta or not scale.numel():
        return UNKNOWN
    scale, shift = scale.detach(), shift.detach().to(scale.device)
    return _bounds(scale.clamp(min=0), scale.clamp(max=0), shift, value)


def _through_conv(op: Conv, value: Interval) -> Interval:
    if not value.is_known or op.weight.is_complex() or op.weight.is_meta:
        return UNKNOWN
    weight = wide(op.weight.detach())
    if op.transposed:  # an output meets only some of the taps: each of them may count or not
        weight = weight.unflatten(0, (op.groups, -1)).transpose(1, 2).flatten(0, 1)
    seen = value.hull(ZERO) if op.transposed or op.zero_pads else value
    rows = weight.flatten(1)
    bias = rows.new_zeros(1) if op.bias is None else wide(op.bias.detach())
    return _bounds(rows.clamp(min=0).sum(1), rows.clamp(max=0).sum(1), bias, seen)


def _bounds(up: Tensor, down: Tensor, shift: Tensor, value: Interval) -> Interval:
    """Return the interval of up * x + down * y + shift, up >= 0 >= down, over all channels."""
    low = _scaled(up, value.low) + _scaled(down, value.high) + shift
    high = _scaled(up, value.high) + _scaled(down, value.low) + shift
    return Interval(float(low.min()), float(high.max()))


def _scaled(factors: Tensor, number: float) -> Tensor:
    """Return the products, 0 where the factor is: nothing of an unbounded value is left there."""
    if number in (inf, -inf):
        return torch.where(factors == 0, torch.zeros_like(factors), factors * number)
    return factors * number


def _of_constant(value: Any) -> Interval:
    if isinstance(value, Tensor):
        if value.is_complex() or value.is_meta or not value.numel():
            return UNKNOWN
        return Interval(float(value.detach().min()), float(value.detach().max()))
    return point(value)


def _name(target: Any) -> str:
    home = getattr(target, "__module__", None) or "torch"
    name = str(getattr(target, "__name__", ""))
    if isinstance(target, torch._ops.OpOverload):
        return target.overloadpacket.__name__ if target.namespace == "aten" else ""
    return name if home.startswith(("torch", "_VariableFunctions")) else ""


def _same(ranges: Ranges, call: Call) -> Interval:
    return ranges.of(call["input"])


def _join(ranges: Ranges, call: Call) -> Interval:
    parts = call["tensors"]
    if not isinstance(parts, Sequence) or not parts:
        return UNKNOWN
    found = [ranges.of(part) for part in cast("Sequence[Any]", parts)]
    whole = found[0]
    for part in found[1:]:
        whole = whole.hull(part)
    return whole


def _dropout(ranges: Ranges, call: Call) -> Interval:
    active = bool(call["training"]) and call["p"] != 0
    return UNKNOWN if active else ranges.of(call["input"])


def _pool(ranges: Ranges, call: Call) -> Interval:
    return UNKNOWN if call["divisor_override"] else ranges.of(call["input"]).hull(ZERO)


def _mean(ranges: Ranges, call: Call) -> Interval:
    return UNKNOWN if call["dtype"] is not None else ranges.of(call["input"])


def _pad(ranges: Ranges, call: Call) -> Interval:
    source, fill = ranges.of(call["input"]), call["value"]
    if call.arguments.get("mode", "constant") != "constant":
        return source
    return source.hull(point(0.0) if fill is None else ranges.of(fill))


def _resize(ranges: Ranges, call: Call) -> Interval:
    return ranges.of(call["input"]) if call["mode"] in _CONVEX else UNKNOWN


def _add(ranges: Ranges, call: Call) -> Interval:
    alpha = ranges.of(call["alpha"])
    sign = point(-1.0 if call.name == "sub" else 1.0)
    return ranges.of(call["input"]) + ranges.of(call["other"]) * alpha * sign


def _mul(ranges: Ranges, call: Call) -> Interval:
    return ranges.of(call["input"]) * ranges.of(call["other"])


def _div(ranges: Ranges, call: Call) -> Interval:
    divisor = ranges.of(call["other"])
    if call["rounding_mode"] or divisor.low * divisor.high <= 0:
        return UNKNOWN
    return ranges.of(call["input"]) * Interval(1 / divisor.high, 1 / divisor.low)


def _neg(ranges: Ranges, call: Call) -> Interval:
    return -ranges.of(call["input"])


_CONVEX = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area")
_MOVES = (
    "flatten reshape reshape_as squeeze unsqueeze transpose permute same chunk split tensor_split "
    "slice narrow index_select channel_shuffle flip getitem adaptive_pool1d adaptive_pool2d "
    "adaptive_pool3d"
)
_CALLS: dict[str, Callable[[Ranges, Call], Interval]] = {
    **dict.fromkeys(_MOVES.split(), _same),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _pool),
    **dict.fromkeys(("cat", "stack", "hstack"), _join),
    "mean": _mean,
    "pad": _pad,
    "constant_pad": _pad,
    "dropout": _dropout,
    "interpolate": _resize,
    "add": _add,
    "sub": _add,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
}
_MAX_POOL_NAMES = frozenset(
    f"{kind}max_pool{rank}d" for kind in ("", "adaptive_") for rank in (1, 2, 3)
)
_HULLS = frozenset(
    {
        *MAX_POOLS.values(),
        *(getattr(nn, f"Adaptive{kind}Pool{n}d") for kind in ("Max", "Avg") for n in (1, 2, 3)),
        nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
    }
)  # fmt: skip
