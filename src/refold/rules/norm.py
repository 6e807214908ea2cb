"""Scales and shifts: eval batch norm, LayerScale, multiplication and addition of constants."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from refold.algebra.arithmetic import form, plus, scale_in_place, times
from refold.algebra.operator import Affine, Conv, Identity, Operator, Sequence, wide
from refold.errors import GeometryError
from refold.rules.rule import Outcome, refuse, rule
from refold.rules.weights import per_channel


@rule("series", exact="always", source="s2 (s1 x + t1) + t2", by_channel=True)
def merge_affines(op: Operator) -> Outcome:
    """Two scales and shifts in a row are one."""
    if not (isinstance(op, Sequence) and all(isinstance(part, Affine) for part in op.parts)):
        return None
    first, second = op.parts
    assert isinstance(first, Affine)
    assert isinstance(second, Affine)
    scale = _product(first.scale, second.scale)
    moved = None if first.shift is None else _product(first.shift, second.scale)
    shift = _plus(moved, second.shift)
    return Identity() if scale is None and shift is None else Affine(scale, shift)


@rule(
    "series",
    exact="always",
    source="W' = diag(s) W, b' = s b + t; RepVGG, arXiv:2101.03697, eq. 3",
    by_channel=True,
)
def fold_affine_into_conv(op: Operator) -> Outcome:
    """A scale and shift after a convolution is a convolution, transposed and linear included."""
    match op:
        case Sequence((Conv() as conv, Affine() as affine)):
            return scale_outputs(conv, affine)
        case _:
            return None


@rule(
    "series",
    exact="no shift, or no zero padding between the shift and the convolution",
    source="W' = W diag(s), b' = b + W t",
)
def fold_affine_ahead_of_conv(op: Operator) -> Outcome:
    """A scale and shift before a convolution is a convolution."""
    match op:
        case Sequence((Affine() as affine, Conv() as conv)):
            return _scale_inputs(affine, conv)
        case _:
            return None


def scale_outputs(conv: Conv, affine: Affine) -> Conv:
    """Return the convolution followed by a scale and shift, as one convolution in float64."""
    weight, bias, channels = conv.weight, conv.bias, conv.out_channels
    _check(affine, channels)
    if affine.scale is not None:
        scale = per_channel(affine.scale, channels, conv.weight.device)
        if conv.transposed:
            whole = weight.to(torch.float64, copy=True)
            weight = _scale_columns(whole, scale, conv.groups)
        else:
            weight = scale_rows(weight, scale)
        bias = None if bias is None else times(wide(bias), scale)
    if affine.shift is not None:
        shift = per_channel(affine.shift, channels, conv.weight.device)
        bias = shift if bias is None else plus(wide(bias), shift)
    return Conv(weight, bias, conv.axes, conv.groups, conv.mode, conv.transposed)


def _scale_inputs(affine: Affine, conv: Conv) -> Outcome:
    channels = conv.in_channels
    _check(affine, channels)
    if affine.shift is not None and conv.zero_pads:
        return refuse(
            "a shift meets the convolution's zero padding: at the border the padded zeros would "
            "have to be shifted too"
        )
    if affine.shift is not None and conv.transposed and not conv.is_pointwise:
        return refuse("a shift before a transposed convolution does not reach every output alike")
    weight, bias = conv.weight, conv.bias
    if affine.scale is not None:
        weight = weight.to(torch.float64, copy=True)
    if affine.shift is not None:
        # One copy of a large kernel is enough: it answers before it is scaled, unless a gradient
        # has to go back through the answer.
        whole = conv if torch.is_grad_enabled() else replace(conv, weight=weight)
        moved = response(whole, per_channel(affine.shift, channels, conv.weight.device))
        bias = moved if bias is None else plus(wide(bias), moved)
    if affine.scale is not None:
        scale = per_channel(affine.scale, channels, conv.weight.device)
        if conv.transposed:
            scale_in_place(weight, scale.reshape(-1, *(1,) * (weight.ndim - 1)))
        else:
            _scale_columns(weight, scale, conv.groups)
    return Conv(weight, bias, conv.axes, conv.groups, conv.mode, conv.transposed)


def response(conv: Conv, constant: Tensor) -> Tensor:
    """Return what the convolution answers to a constant per input channel, away from zero borders.

    Shape:
        constant (I,) -> (O,), float64.
    """
    if conv.weight.is_meta:
        return form(constant, conv.out_channels)
    weight = wide(conv.weight).unflatten(0, (conv.groups, -1))
    taps = weight.flatten(3).sum(3) if weight.ndim > 3 else weight
    values = constant.reshape(conv.groups, -1, 1)
    matrix = taps.transpose(1, 2) if conv.transposed else taps
    return (matrix @ values).flatten()


def scale_rows(weight: Tensor, factors: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the weight with its first axis scaled: `out` filled, or a new float64 tensor."""
    product = weight.to(torch.float64, copy=True) if out is None else out.copy_(weight)
    return scale_in_place(product, factors.reshape(-1, *(1,) * (weight.ndim - 1)))


def _scale_columns(weight: Tensor, factors: Tensor, groups: int) -> Tensor:
    """Scale the second axis of each group of a float64 weight in place, and return the weight."""
    spare = (1,) * (weight.ndim - 2)
    view = weight.unflatten(0, (groups, -1))
    scale_in_place(view, factors.reshape(groups, 1, -1, *spare))
    return weight


def _check(affine: Affine, channels: int) -> None:
    for vector in (affine.scale, affine.shift):
        if vector is not None and vector.ndim == 1 and vector.shape[0] != channels:
            raise GeometryError(f"{vector.shape[0]} factors do not fit {channels} channels")


def _product(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return left if right is None else right
    return times(wide(left), wide(right))


def _plus(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return left if right is None else right
    return plus(wide(left), wide(right))
