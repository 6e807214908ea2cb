"""Elementwise nonlinear functions: what they are called, where they change nothing, their range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf, nextafter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from refold.graph.calls import canonical
from refold.graph.copies.modules import submodule
from refold.graph.layers import ChannelClamp, ChannelSlope, HardGate, hard_gate
from refold.graph.lift.context import Context
from refold.graph.lift.interval import Interval, point
from refold.graph.trace.overridden import layer_class

Limit = Tensor | float


@dataclass(frozen=True, eq=False)
class Activation:
    """A call of an elementwise function.

    Args:
        source: what it reads.
        name: the function, as torch.nn.functional names it.
        image: the interval of its values from that of its input.
        keeps: the numbers that it gives back unchanged, whatever the channel; None for no interval.
        bounds: the lower and upper bound of a clamp (a ReLU is one).
        slope: what a leaky ReLU multiplies negative numbers by.
    """

    source: fx.Node
    name: str
    image: Callable[[Interval], Interval]
    keeps: Interval | None = None
    bounds: tuple[Limit, Limit] | None = None
    slope: Limit | None = None

    def at(self, value: float, channel: int | None = None) -> float | None:
        """Return what becomes of a number; None where that, or the channel, is not known."""
        if self.bounds is not None:
            low, high = (_in_channel(limit, channel) for limit in self.bounds)
            return None if low is None or high is None else min(max(value, low), high)
        if self.slope is not None:
            slope = _in_channel(self.slope, channel)
            return value if value >= 0 else None if slope is None else value * slope
        image = self.image(point(value))
        return image.low if image.low == image.high else None


def _in_channel(limit: Limit, channel: int | None) -> float | None:
    if not isinstance(limit, Tensor):
        return limit
    flat = limit.detach().flatten()
    if flat.numel() == 1:
        return float(flat[0])
    return None if channel is None else float(flat[channel])


def activation(context: Context, node: fx.Node) -> Activation | None:
    """Return what elementwise function a node calls, None for any other node.

    Examples:
        >>> from refold.graph.trace.capture import capture
        >>> from refold.graph.lift.constants import Constants
        >>> from refold.graph.lift.lifter import Lifter
        >>> [found] = capture(nn.Sequential(nn.ReLU6()))
        >>> x, relu, out = found.graph.nodes
        >>> activation(Lifter(found, Constants(found), {}, {}), relu).keeps
        Interval(low=0.0, high=6.0)
    """
    called = None if node in context.tainted else _called(context, node)
    if called is None:
        return None
    name, source, given = called
    if name in _CLAMPS:
        return _clamp(context, source, *_CLAMPS[name](given))
    if name in _SLOPES:
        return _leaky(context, source, given)
    if name == "threshold":
        return _threshold(context, source, given)
    if name in _SHRINKS:
        return _shrink(context, source, name, given)
    if name in _RISING:
        keeps = Interval(0.0, inf) if name in ("elu", "celu") else None
        return Activation(source, name, partial(_rising, name, given), keeps)
    if name in _GATED:
        return Activation(source, name, partial(_gated, name, given))
    return None


Called = tuple[str, fx.Node, dict[str, Any]]


def _called(context: Context, node: fx.Node) -> Called | None:
    """Return name, input and arguments of a call of torch's own function or layer."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    if node.op == "call_module":
        path = str(node.target)
        module = submodule(context.capture.module, path)
        entry = None if path in context.capture.pinned else _LAYERS.get(layer_class(module))
        if isinstance(module, nn.RReLU) and module.training:  # it draws its slopes
            return None
        return (entry[0], source, entry[1](module)) if entry else None
    call = canonical(node)
    if call is None or call.name not in _NAMES:
        return None
    given = {key: value for key, value in call.arguments.items() if key != "input"}
    inplace = given.pop("inplace", False)
    return (call.name, source, given) if isinstance(inplace, bool) else None


def _limit(context: Context, value: Any, default: float) -> Limit | None:
    """Return a bound as a number or tensor, None when it depends on the input."""
    if value is None:
        return default
    if isinstance(value, Tensor):
        return value
    number = context.number(value)
    return float(number) if number is not None else context.tensor(value)


def _extreme(limit: Limit, pick: str) -> float:
    if isinstance(limit, Tensor):
        if limit.is_meta:
            return -inf if pick == "min" else inf
        return float(getattr(limit.detach(), pick)()) if limit.numel() else 0.0
    return limit


def _clamp(context: Context, source: fx.Node, low: Any, high: Any) -> Activation | None:
    lower, upper = _limit(context, low, -inf), _limit(context, high, inf)
    if lower is None or upper is None:
        return None
    keeps = Interval(_extreme(lower, "max"), _extreme(upper, "min"))
    least, most = _extreme(lower, "min"), _extreme(upper, "max")
    if _extreme(lower, "max") > _extreme(upper, "min"):
        return None

    def image(x: Interval) -> Interval:
        return Interval(max(x.low, least), max(min(x.high, most), _extreme(lower, "max")))

    return Activation(source, "clamp", image, keeps, bounds=(lower, upper))


def _leaky(context: Context, source: fx.Node, given: dict[str, Any]) -> Activation | None:
    slope = _limit(context, given.get("weight", given.get("negative_slope")), 0.01)
    if slope is None:
        return None
    slopes = Interval(_extreme(slope, "min"), _extreme(slope, "max"))
    keeps = Interval() if slopes == point(1.0) else Interval(0.0, inf)

    def image(x: Interval) -> Interval:
        negative = Interval(min(x.low, 0.0), min(x.high, 0.0)) * slopes
        positive = Interval(max(x.low, 0.0), max(x.high, 0.0))
        if x.low >= 0:
            return positive
        return negative if x.high <= 0 else negative.hull(positive)

    return Activation(source, "leaky_relu", image, keeps, slope=slope)


def _threshold(context: Context, source: fx.Node, given: dict[str, Any]) -> Activation | None:
    limit, value = context.number(given.get("threshold")), context.number(given.get("value"))
    if limit is None or value is None:
        return None
    least = float(limit) if limit in (value, -inf) else nextafter(limit, inf)

    def image(x: Interval) -> Interval:
        if x.high <= limit:
            return point(value)
        above = Interval(max(x.low, limit), max(x.high, limit))
        return above if x.low > limit else above.hull(point(value))

    return Activation(source, "threshold", image, Interval(least, inf))


def _shrink(
    context: Context, source: fx.Node, name: str, given: dict[str, Any]
) -> Activation | None:
    limit = context.number(given.get("lambd", 0.5))
    if limit is None:
        return None
    keeps = Interval() if limit == 0 else None
    return Activation(source, name, lambda x: x.hull(point(0.0)), keeps)


def _rising(name: str, given: dict[str, Any], x: Interval) -> Interval:
    """Return the image of a function that never falls: its values at the ends."""
    options = {key: value for key, value in given.items() if value is not None}
    if not all(isinstance(v, (int, float)) and v >= 0 for v in options.values()):
        return Interval()
    ends = torch.tensor([x.low, x.high], dtype=torch.float64)
    values = _RISING[name](ends, **options)
    return Interval(float(values[0]), float(values[1]))


def _gated(name: str, given: dict[str, Any], x: Interval) -> Interval:
    """Return the image of x times a gate between 0 and 1."""
    if x.low == x.high:
        value = float(_GATED[name][0](torch.tensor(x.low, dtype=torch.float64), **given))
        return Interval(value, value)
    return Interval(0.0 if x.low >= 0 else _GATED[name][1], max(x.high, 0.0))


_CLAMPS: dict[str, Callable[[dict[str, Any]], tuple[Any, Any]]] = {
    "relu": lambda given: (0.0, None),
    "relu6": lambda given: (0.0, 6.0),
    "hardtanh": lambda given: (given.get("min_val", -1.0), given.get("max_val", 1.0)),
    "clamp": lambda given: (given.get("min"), given.get("max")),
    "clip": lambda given: (given.get("min"), given.get("max")),
    "clamp_min": lambda given: (given.get("min"), None),
    "clamp_max": lambda given: (None, given.get("max")),
}
_SLOPES = frozenset({"leaky_relu", "prelu"})
_SHRINKS = frozenset({"hardshrink", "softshrink"})
_RISING: dict[str, Callable[..., Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": hard_gate,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "exp": torch.exp,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "logsigmoid": F.logsigmoid,
}
# The least value that each takes, rounded down.
_GATED: dict[str, tuple[Callable[..., Tensor], float]] = {
    "silu": (F.silu, -0.2785),
    "hardswish": (F.hardswish, -0.3751),
    "gelu": (F.gelu, -0.1701),
    "mish": (F.mish, -0.3089),
}
_NAMES = frozenset({*_CLAMPS, *_SLOPES, *_SHRINKS, *_RISING, *_GATED, "threshold"})


def _nothing(module: Any) -> dict[str, Any]:
    return {}


_LAYERS: dict[type, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    nn.ReLU: ("relu", _nothing),
    nn.ReLU6: ("relu6", _nothing),
    nn.Hardtanh: ("hardtanh", lambda m: {"min_val": m.min_val, "max_val": m.max_val}),
    nn.LeakyReLU: ("leaky_relu", lambda m: {"negative_slope": m.negative_slope}),
    nn.RReLU: ("leaky_relu", lambda m: {"negative_slope": (m.lower + m.upper) / 2}),
    nn.Threshold: ("threshold", lambda m: {"threshold": m.threshold, "value": m.value}),
    nn.Hardshrink: ("hardshrink", lambda m: {"lambd": m.lambd}),
    nn.Softshrink: ("softshrink", lambda m: {"lambd": m.lambd}),
    nn.PReLU: ("prelu", lambda m: {"weight": m.weight}),
    nn.ELU: ("elu", lambda m: {"alpha": m.alpha}),
    nn.CELU: ("celu", lambda m: {"alpha": m.alpha}),
    nn.SELU: ("selu", _nothing),
    nn.Sigmoid: ("sigmoid", _nothing),
    nn.Hardsigmoid: ("hardsigmoid", _nothing),
    HardGate: ("hardsigmoid", lambda m: {"slope": m.slope, "offset": m.offset}),
    nn.Tanh: ("tanh", _nothing),
    nn.Softplus: ("softplus", lambda m: {"beta": m.beta, "threshold": m.threshold}),
    nn.LogSigmoid: ("logsigmoid", _nothing),
    nn.SiLU: ("silu", _nothing),
    nn.Hardswish: ("hardswish", _nothing),
    nn.GELU: ("gelu", lambda m: {"approximate": m.approximate}),
    nn.Mish: ("mish", _nothing),
    ChannelClamp: ("clamp", lambda m: {"min": m.low, "max": m.high}),
    ChannelSlope: ("prelu", lambda m: {"weight": m.slope}),
}
