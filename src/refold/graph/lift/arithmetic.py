"""Sums, differences, products and quotients, with each other and with constants.

A constant is a number, or a stored tensor with one number per channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx

from refold.algebra.operator import Affine, Conv, Identity, Operator, Zero
from refold.graph.calls import Call
from refold.graph.lift.context import Context, Handler, Shape
from refold.graph.lift.joins.new_values import without_zeros
from refold.graph.lift.piece import Lifted, Piece, unary
from refold.graph.lift.same_shape import channels_of

Vector = tuple[Tensor, int | None]


def per_channel(context: Context, constant: Any, value: fx.Node) -> Vector | str | None:
    """Return a constant as one number per channel, in float64, with the rank its shape implies.

    None when it is not a constant, varies over several axes, or gives `value` another shape; a
    reason when it is tied, or when only example inputs could tell.
    """
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
    shape = context.shape(value)
    vector = vector_of(tensor.detach(), shape)
    if shape is not None or not isinstance(vector, tuple) or not vector[0].ndim:
        return vector
    if channels_of(context, value, vector[1]) != len(vector[0]):
        return "whether the constant adds channels depends on the input; pass example_inputs"
    return vector


def vector_of(tensor: Tensor, shape: Shape | None) -> Vector | str | None:
    """Return a constant that a value of a shape is multiplied by as `per_channel` does."""
    tensor = _shrunk(tensor)
    if shape is not None and not _fits(tuple(tensor.shape), shape):
        return None
    wide = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    if len(wide) > 1:
        return None
    if shape is None and ((tensor.ndim > 2 and not wide) or wide > [1]):
        return "whether the constant adds axes depends on the input; pass example_inputs"
    rank = tensor.ndim - 1 - wide[0] if wide else None
    return tensor.to(torch.float64).flatten() if wide else tensor.double().reshape(()), rank


def _shrunk(tensor: Tensor) -> Tensor:
    """Return the tensor with expanded axes at size 1: they hold one number many times."""
    for axis, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _fits(small: Shape, shape: Shape) -> bool:
    """Return whether a tensor broadcasts to a shape without changing it."""
    tail = shape[len(shape) - len(small) :]
    fits = all(a in (1, b) for a, b in zip(small, tail, strict=False))
    return len(small) <= len(shape) and fits


def scaled(context: Context, value: fx.Node, factor: Any, *, divide: bool = False) -> Lifted:
    """Return value * factor or value / factor, for a constant factor other than the number 0."""
    vector = per_channel(context, factor, value)
    if vector is None or isinstance(vector, str):
        return vector
    scale, rank = vector
    if _is_all(scale, 1.0):
        return unary(value, Identity(), keeps_shape=True)
    op = Affine(1.0 / scale if divide else scale)
    return unary(value, op, rank=rank, keeps_shape=True)


def _is_all(tensor: Tensor, number: float) -> bool:
    return not tensor.is_meta and bool((tensor == number).all())


def shifted(
    context: Context, value: fx.Node, scale: Tensor | None, constant: Any, factor: float
) -> Lifted:
    """Return scale * value + factor * constant."""
    vector = per_channel(context, constant, value)
    if vector is None or isinstance(vector, str):
        return vector
    shift, rank = vector
    if scale is None and _is_all(shift, 0.0):
        return unary(value, Identity(), keeps_shape=True)
    return unary(value, Affine(scale, shift * factor), rank=rank, keeps_shape=True)


def matrix(context: Context, weight: Any, bias: Any) -> Conv | str | None:
    """Return x @ weight + bias, both constant, as a linear layer: weight (I, O), bias (O,)."""
    tensors = context.weights(weight, bias)
    if tensors is None or isinstance(tensors, str):
        return tensors
    right, shift = tensors
    if right is None or right.ndim != 2 or (shift is not None and shift.ndim != 1):
        return None
    fits = shift is None or shift.shape[0] == right.shape[1]
    return Conv(right.T, shift) if fits else None


def linear(value: fx.Node, op: Conv) -> Piece:
    """Return the piece of a linear layer: it acts on the last axis, so nothing lies after it."""
    return Piece((value,), (op,), rank_in=0, rank_out=0)


def _add(context: Context, node: fx.Node, call: Call) -> Lifted:
    alpha = context.number(call.arguments.get("alpha", 1))
    if alpha is None or (call.name == "rsub" and alpha != 1):
        return None
    factors = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-1.0, 1.0)}[call.name]
    return _combine(context, (call["input"], call["other"]), factors)


def _lerp(context: Context, node: fx.Node, call: Call) -> Lifted:
    weight = context.number(call["weight"])
    ends = (call["input"], call["end"])
    if weight is None:
        return _lerp_by_channel(context, ends, call["weight"])
    return _combine(context, ends, (1.0 - weight, weight))


def _lerp_by_channel(context: Context, ends: tuple[Any, Any], weight: Any) -> Lifted:
    """Lift (1 - w) * x + w * y for a constant tensor w."""
    if context.depends(weight) or not all(map(context.depends, ends)):
        return None
    vector = per_channel(context, weight, ends[0])
    if vector is None or isinstance(vector, str):
        return vector
    scale, rank = vector
    whole = _sum(context, ends, [Affine(1.0 - scale), Affine(scale)])
    return None if whole is None else replace(whole, rank_in=rank)


def _combine(context: Context, terms: tuple[Any, Any], factors: tuple[float, float]) -> Lifted:
    """Lift a * x + b * y, where one of the two may be a constant."""
    values = [term for term in terms if context.depends(term)]
    if len(values) == 2 and values[0] is values[1]:
        return unary(values[0], _times(sum(factors)), keeps_shape=True)
    if len(values) == 2:
        left = without_zeros(context, values)
        if len(left) == 1:
            return unary(values[left[0]], _times(factors[left[0]]), keeps_shape=True)
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
    """Return the sum of values of one shape; a broadcast one is not a branch of the others."""
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
    """Lift input + value * x * other (addcdiv: x / other), where other is constant."""
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
    one = torch.ones((), dtype=torch.float64)
    scale = value * (op.scale if isinstance(op, Affine) and op.scale is not None else one)
    if context.depends(call["input"]):
        both = _sum(context, (call["input"], x), [Identity(), Affine(scale)])
        return None if both is None else replace(both, rank_in=factor.rank_in)
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
}
