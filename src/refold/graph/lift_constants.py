"""Constants beside a value: numbers, and stored tensors with one number per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from refold.algebra.operator import Affine, Conv
from refold.graph.even import channels_of
from refold.graph.lift_context import Context, Shape
from refold.graph.piece import Lifted, Piece, unary

Vector = tuple[Tensor, int | None]


def per_channel(context: Context, constant: Any, value: fx.Node) -> Vector | str | None:
    """Return a constant as one number per channel, in float64, with the rank its shape implies.

    None when it is no constant, varies over several axes, or gives `value` another shape; a reason
    when it is tied, or when only example inputs could tell.
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
    vector = _vector(_shrunk(tensor.detach()), shape)
    if shape is not None or not isinstance(vector, tuple) or not vector[0].ndim:
        return vector
    if channels_of(context, value, vector[1]) != len(vector[0]):
        return "whether the constant adds channels depends on the input; pass example_inputs"
    return vector


def _vector(tensor: Tensor, shape: Shape | None) -> Vector | str | None:
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
    op = Affine(1.0 / scale if divide else scale)
    return unary(value, op, rank=rank, keeps_shape=True)


def shifted(
    context: Context, value: fx.Node, scale: Tensor | None, constant: Any, factor: float
) -> Lifted:
    """Return scale * value + factor * constant."""
    vector = per_channel(context, constant, value)
    if vector is None or isinstance(vector, str):
        return vector
    shift, rank = vector
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
