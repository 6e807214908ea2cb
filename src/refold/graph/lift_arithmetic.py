"""Sums, differences, products and quotients, with each other and with constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import fx

from refold.algebra.operator import Affine, Identity, Operator, Zero
from refold.graph.calls import Call, canonical
from refold.graph.lift_constants import scaled, shifted
from refold.graph.lift_context import Context, Handler
from refold.graph.piece import Lifted, Piece, unary


def _add(context: Context, node: fx.Node, call: Call) -> Lifted:
    alpha = context.number(call.arguments.get("alpha", 1))
    if alpha is None or (call.name == "rsub" and alpha != 1):
        return None
    factors = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-1.0, 1.0)}[call.name]
    return _combine(context, (call["input"], call["other"]), factors)


def _lerp(context: Context, node: fx.Node, call: Call) -> Lifted:
    weight = context.number(call["weight"])
    ends = (call["input"], call["end"])
    return None if weight is None else _combine(context, ends, (1.0 - weight, weight))


def _combine(context: Context, terms: tuple[Any, Any], factors: tuple[float, float]) -> Lifted:
    """Lift a * x + b * y, where one of the two may be a constant."""
    values = [term for term in terms if context.depends(term)]
    if len(values) == 2:
        return _sum(context, values, [_times(factor) for factor in factors])
    if not values:
        return None
    at = 0 if terms[0] is values[0] else 1
    constant, factor, scale = terms[1 - at], factors[1 - at], factors[at]
    if context.number(constant) == 0:
        return unary(values[0], _times(scale), keeps_shape=True)
    wide = None if scale == 1 else torch.tensor(float(scale), dtype=torch.float64)
    return shifted(context, values[0], wide, constant, factor)


def _sum(context: Context, values: Sequence[fx.Node], ops: Sequence[Operator]) -> Piece | None:
    """Return the sum of values of one shape; one that is broadcast is no branch of the others."""
    shapes = {shape for value in values if (shape := context.shape(value)) is not None}
    return Piece(tuple(values), tuple(ops), join="sum") if len(shapes) < 2 else None


def _times(factor: float) -> Affine | Identity:
    return Identity() if factor == 1 else Affine(torch.tensor(float(factor), dtype=torch.float64))


def _mul(context: Context, node: fx.Node, call: Call) -> Lifted:
    value, factor = call["input"], call["other"]
    if not context.depends(value):
        value, factor = factor, value
    if not context.depends(value) or context.depends(factor):
        return None
    if context.number(factor) == 0:
        return _zero(context, value)
    return scaled(context, value, factor)


def _div(context: Context, node: fx.Node, call: Call) -> Lifted:
    value, divisor = call["input"], call["other"]
    if call["rounding_mode"] or not context.depends(value) or context.depends(divisor):
        return None
    return scaled(context, value, divisor, divide=True)


def _addcmul(context: Context, node: fx.Node, call: Call) -> Lifted:
    """Lift input + value * x * other (addcdiv: x / other) where all but x is constant."""
    x, other, value = call["tensor1"], call["tensor2"], context.number(call["value"])
    divide = call.name == "addcdiv"
    if not divide and not context.depends(x):
        x, other = other, x
    if value is None or not context.depends(x) or context.depends(other):
        return None
    factor = scaled(context, x, other, divide=divide)
    if not isinstance(factor, Piece):
        return factor
    [op] = factor.ops
    assert isinstance(op, Affine)
    scale = None if op.scale is None else op.scale * value
    whole = shifted(context, x, scale, call["input"], 1.0)
    if not isinstance(whole, Piece) or factor.rank_in in (None, whole.rank_in):
        return whole
    return replace(whole, rank_in=factor.rank_in) if whole.rank_in is None else None


def _neg(context: Context, node: fx.Node, call: Call) -> Lifted:
    value = call["input"]
    return unary(value, _times(-1.0), keeps_shape=True) if context.depends(value) else None


def _zeros(context: Context, node: fx.Node, call: Call) -> Lifted:
    return _zero(context, call["input"])


def _zero(context: Context, value: fx.Node) -> Lifted:
    """Return zeros of a value's shape, once that is known: they may give a sum its shape."""
    return unary(value, Zero(), keeps_shape=True) if context.shape(value) is not None else None


def _sum_list(context: Context, node: fx.Node, call: Call) -> Lifted:
    items = call["items"]
    if not isinstance(items, Sequence) or context.number(call["start"]) != 0:
        return None
    return _sum_all(context, list(cast("Sequence[Any]", items)), 1.0)


def _sum_all(context: Context, items: list[Any], factor: float) -> Piece | None:
    if not items or not all(context.depends(item) for item in items):
        return None
    return _sum(context, items, [_times(factor) for _ in items])


def _sum_stack(context: Context, node: fx.Node, call: Call) -> Lifted:
    """Lift the sum of values that were stacked along the summed axis."""
    stack = call["input"]
    inner = canonical(stack) if isinstance(stack, fx.Node) else None
    if inner is None or inner.name != "stack" or call["keepdim"] or call["dtype"] is not None:
        return None
    items, dim = inner["tensors"], call["dim"]
    if not isinstance(items, (list, tuple)) or dim not in (inner["dim"], [inner["dim"]]):
        return None
    whole = _sum_all(context, list(cast("Sequence[Any]", items)), 1.0)
    return None if whole is None else replace(whole, through=(stack,))


ARITHMETIC: dict[str, Handler] = {
    "add": _add,
    "sub": _add,
    "rsub": _add,
    "lerp": _lerp,
    "mul": _mul,
    "div": _div,
    "addcmul": _addcmul,
    "addcdiv": _addcmul,
    "neg": _neg,
    "zeros_like": _zeros,
    "sum_list": _sum_list,
    "sum": _sum_stack,
}
