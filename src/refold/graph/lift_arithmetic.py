"""Sums, differences, products and quotients, with each other and with constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from refold.algebra.operator import Affine, Identity, Zero
from refold.graph.calls import Call
from refold.graph.lift_context import Context, Handler
from refold.graph.piece import Lifted, Piece, unary


def _add(context: Context, node: fx.Node, call: Call) -> Lifted:
    alpha = context.number(call.arguments.get("alpha", 1))
    sign = {"add": 1, "sub": -1, "rsub": 1}[call.name]
    left, right = call["input"], call["other"]
    factors = (-1.0, 1.0) if call.name == "rsub" else (1.0, float(sign))
    if alpha is None or (call.name == "rsub" and alpha != 1):
        return None
    return _combine(context, node, (left, right), (factors[0], factors[1] * alpha))


def _combine(
    context: Context, node: fx.Node, terms: tuple[Any, Any], factors: tuple[float, float]
) -> Lifted:
    values = [t for t in terms if isinstance(t, fx.Node) and context.constants.value(t) is None]
    if len(values) == 2:
        ops = tuple(_times(factor) for factor in factors)
        return Piece(tuple(values), ops, join="sum")
    if not values:
        return None
    at = 0 if terms[0] is values[0] else 1
    constant, factor = terms[1 - at], factors[1 - at]
    if context.number(constant) == 0:
        return unary(values[0], _times(factors[at]), keeps_shape=True)
    vector = _vector(context, constant, values[0])
    if vector is None or isinstance(vector, str):
        return vector
    shift, rank = vector
    scale = None if factors[at] == 1 else torch.tensor(factors[at], dtype=torch.float64)
    op = Affine(scale, shift.to(torch.float64) * factor)
    return unary(values[0], op, rank=rank, keeps_shape=True)


def _times(factor: float) -> Affine | Identity:
    return Identity() if factor == 1 else Affine(torch.tensor(float(factor), dtype=torch.float64))


def _mul(context: Context, node: fx.Node, call: Call) -> Lifted:
    left, right = call["input"], call["other"]
    if not isinstance(left, fx.Node) or context.constants.value(left) is not None:
        left, right = right, left
    return _scaled(context, left, right, divide=False)


def _div(context: Context, node: fx.Node, call: Call) -> Lifted:
    return (
        None
        if call["rounding_mode"]
        else _scaled(context, call["input"], call["other"], divide=True)
    )


def _scaled(context: Context, value: Any, factor: Any, *, divide: bool) -> Lifted:
    if not isinstance(value, fx.Node) or context.constants.value(value) is not None:
        return None
    number = context.number(factor)
    if number is not None and number == 0 and not divide:
        return unary(value, Zero(), keeps_shape=True)
    vector = _vector(context, factor, value)
    if vector is None or isinstance(vector, str):
        return vector
    scale, rank = vector
    scale = scale.to(torch.float64)
    op = Affine(1.0 / scale if divide else scale)
    return unary(value, op, rank=rank, keeps_shape=True)


def _vector(
    context: Context, constant: Any, value: fx.Node
) -> tuple[Tensor, int | None] | str | None:
    """Return a constant as one number per channel with the rank its shape implies."""
    number = context.number(constant)
    if number is not None:
        return torch.tensor(float(number), dtype=torch.float64), None
    tensors = context.weights(constant)
    if tensors is None or isinstance(tensors, str):
        return tensors
    tensor = tensors[0]
    assert tensor is not None
    if not tensor.is_floating_point() and tensor.dtype != torch.int64:
        return None
    wide = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    shape = context.shape(value)
    if shape is not None and tensor.ndim > len(shape):
        return None
    if not wide:
        return tensor.detach().reshape(()), None
    if len(wide) > 1:
        return None
    return tensor.detach().flatten(), tensor.ndim - 1 - wide[0]


def _neg(context: Context, node: fx.Node, call: Call) -> Lifted:
    return unary(call["input"], _times(-1.0), keeps_shape=True)


def _zeros(context: Context, node: fx.Node, call: Call) -> Lifted:
    return unary(call["input"], Zero(), keeps_shape=True)


def _sum_list(context: Context, node: fx.Node, call: Call) -> Lifted:
    items = call["items"]
    if not isinstance(items, Sequence) or context.number(call["start"]) != 0:
        return None
    nodes = [item for item in cast("Sequence[Any]", items) if isinstance(item, fx.Node)]
    return Piece(tuple(nodes), (Identity(),) * len(nodes), join="sum") if nodes else None


ARITHMETIC: dict[str, Handler] = {
    "add": _add,
    "sub": _add,
    "rsub": _add,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "zeros_like": _zeros,
    "sum_list": _sum_list,
}
