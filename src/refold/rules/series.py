"""Convolutions one after the other, with the border told apart from the inside."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import gcd

import torch
from torch import Tensor

from refold.algebra.arithmetic import form, plus
from refold.algebra.geometry import Axes, Axis, compose
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Conv,
    Operator,
    Pad,
    Refusal,
    Select,
    Sequence,
    wide,
)
from refold.errors import GeometryError
from refold.rules.norm import response, scale_outputs
from refold.rules.rule import Outcome, refuse, rule
from refold.rules.weights import as_conv, channels_into, device_of, rank_of, regroup, turned


@rule(
    "series",
    exact="where the second pads, the first finds nothing but that padding; no bias meets zeros",
    source="DBB, arXiv:2103.13425, Transform III",
)
def merge_convs_in_series(op: Operator) -> Outcome:
    """Two convolutions (or average pools) in a row are one: 1×1→k×k, k×k→1×1 and the like."""
    if not (isinstance(op, Sequence) and len(op.parts) == 2):
        return None
    pair = _as_pair(*op.parts)
    if pair is None:
        return None
    return _merge(*pair)


@rule(
    "last",
    exact="as two convolutions in series",
    source="pools, pads, scales and choices are convolutions",
)
def merge_into_conv(op: Operator) -> Outcome:
    """Two neighbours that are convolutions in all but name are one."""
    kinds = (AvgPool, Pad, Affine, Select)
    if not (isinstance(op, Sequence) and all(isinstance(part, kinds) for part in op.parts)):
        return None
    channels = next((n for n in map(channels_into, op.parts) if n is not None), None)
    device = device_of(op.parts)
    if channels is None or device is None:
        return None
    return chain_as_conv(op.parts, channels, rank_of(op.parts), device)


def chain_as_conv(
    parts: tuple[Operator, ...], channels: int | None, rank: int, device: torch.device | None = None
) -> Conv:
    """Return operators in a row, convolutions in all but name, as one convolution.

    Args:
        parts: at least one operator.
        channels: how many enter, None where nobody knows.
        rank: spatial axes.
        device: where new tensors are made.

    Raises:
        GeometryError: with the reason why they are not one convolution.
    """
    whole = as_conv(parts[0], channels, rank, device)
    for part in parts[1:]:
        if isinstance(part, Affine):
            whole = scale_outputs(whole, part)
            continue
        merged = _merge(whole, as_conv(part, whole.out_channels, rank, device))
        if not isinstance(merged, Conv):
            reason = merged.reason if isinstance(merged, Refusal) else "channels do not fit"
            raise GeometryError(reason)
        whole = merged
    return whole


def _merge(first: Conv, second: Conv) -> Conv | Refusal | None:
    first, second = turned(first), turned(second)
    if len(first.axes) != len(second.axes) or first.out_channels != second.in_channels:
        return None
    if first.transposed or second.transposed:
        return _merge_transposed(first, second)
    return _border_refusal(first, second) or _compose(first, second)


def _as_pair(first: Operator, second: Operator) -> tuple[Conv, Conv] | None:
    """Return both as convolutions; two pools stay pools, since their channels are unknown."""
    if isinstance(first, Conv) and isinstance(second, (Conv, AvgPool)):
        return first, as_conv(second, first.out_channels, len(first.axes), first.weight.device)
    if isinstance(first, AvgPool) and isinstance(second, Conv):
        return as_conv(first, second.in_channels, len(second.axes), second.weight.device), second
    return None


def _border_refusal(first: Conv, second: Conv) -> Refusal | None:
    pairs = list(zip(first.axes, second.axes, strict=True))
    if not any(b.pads for _, b in pairs):
        return None
    if second.mode == "zeros" and not all(_finds_zeros(a, b) for a, b in pairs):
        return refuse(
            "the second convolution pads the map between the two, where the first one's kernel "
            "would have read beyond the border"
        )
    if second.mode == "zeros" and first.bias is not None:
        return refuse(
            "a bias meets the second convolution's zero padding: padded positions would need the "
            "bias too (pad before the 1x1, or pad with its bias)"
        )
    if second.mode != "zeros" and any(b.pads and not a.is_point for a, b in pairs):
        return refuse(
            f"{second.mode} padding of what the first convolution computes is not, on every map, "
            "that padding of its input"
        )
    if first.mode != second.mode and any(axis.pads for axis in first.axes):
        return refuse(f"{first.mode} padding meets {second.mode} padding")
    return None


def _finds_zeros(first: Axis, second: Axis) -> bool:
    """Whether the first window, moved on to where the second pads, lies wholly outside its map."""
    before = second.lo <= 0 or first.span <= first.stride + first.lo
    after = second.hi <= 0 or first.span <= 1 + first.hi
    return before and after


def _compose(first: Conv, second: Conv) -> Conv:
    axes = tuple(compose(a, b) for a, b in zip(first.axes, second.axes, strict=True))
    groups = gcd(first.groups, second.groups)
    inner = _per_group(first.weight, first.groups, groups)
    outer = _per_group(second.weight, second.groups, groups)
    shape = (groups, outer.shape[1], inner.shape[2], *(axis.kernel for axis in axes))
    weight = torch.zeros(shape, dtype=torch.float64, device=first.weight.device)
    taps = product(*(range(axis.kernel) for axis in second.axes))
    for tap in () if weight.is_meta else taps:  # without storage the shape is all there is
        where = _landing(tap, first.axes, second.axes, axes)
        weight[(..., *where)] += torch.einsum("gom,gmi...->goi...", outer[(..., *tap)], inner)
    mode = second.mode if any(axis.pads for axis in second.axes) else first.mode
    return Conv(weight.flatten(0, 1), chained_bias(first, second), axes, groups, mode)


def _landing(tap: tuple[int, ...], first: Axes, second: Axes, whole: Axes) -> tuple[slice, ...]:
    """Return where the first kernel's taps land in the whole kernel under one tap of the second."""
    places: list[slice] = []
    for t, a, b, w in zip(tap, first, second, whole, strict=True):
        start = (a.stride * b.offsets[t] + a.offsets[0] + w.lo) // w.dilation
        step = a.dilation // w.dilation if a.kernel > 1 else 1
        places.append(slice(start, start + step * (a.kernel - 1) + 1, step))
    return tuple(places)


def _per_group(weight: Tensor, groups: int, target: int) -> Tensor:
    return wide(regroup(weight, groups, target)).unflatten(0, (target, -1))


def chained_bias(first: Conv, second: Conv) -> Tensor | None:
    """Return b2 + W2 b1, None when neither has a bias."""
    if first.bias is None:
        return None if second.bias is None else wide(second.bias)
    moved = response(second, wide(first.bias))
    return moved if second.bias is None else plus(moved, wide(second.bias))


def _merge_transposed(first: Conv, second: Conv) -> Conv | Refusal:
    if first.transposed and _chooses_positions(second):
        return _merge_scattered(first, second, _cropped(first.axes, second.axes))
    if not first.is_pointwise:
        return refuse("a transposed convolution merges with pointwise convolutions only")
    if first.bias is not None:
        return refuse("a bias before a transposed convolution does not reach every output alike")
    return _merge_scattered(first, second, second.axes)


def _chooses_positions(conv: Conv) -> bool:
    """Whether a convolution mixes channels of single positions, and leaves out borders at most."""
    if conv.transposed:
        return conv.is_pointwise
    return all(a.kernel == 1 and a.stride == 1 and not a.pads for a in conv.axes)


def _cropped(scatter: Axes, choice: Axes) -> Axes:
    pairs = zip(scatter, choice, strict=True)
    return tuple(replace(a, lo=a.lo - b.lo, hi=a.hi - b.hi) for a, b in pairs)


def _merge_scattered(first: Conv, second: Conv, axes: Axes) -> Conv:
    """Return two convolutions, one of them pointwise, as one transposed convolution."""
    groups = gcd(first.groups, second.groups)
    inner, outer = _matrix_first(first, groups), _matrix_first(second, groups)
    weight = _mixed(inner, outer)
    bias = chained_bias(first, second)
    return Conv(weight.flatten(0, 1), bias, axes, groups, transposed=True)


def _mixed(inner: Tensor, outer: Tensor) -> Tensor:
    if not inner.is_meta:
        return torch.einsum("gim...,gmo...->gio...", inner, outer)
    kernel = map(max, inner.shape[3:], outer.shape[3:])
    return form(inner, *inner.shape[:2], outer.shape[2], *kernel)


def _matrix_first(conv: Conv, groups: int) -> Tensor:
    """Return the weight as (groups, in, out, *kernel), the layout of a transposed convolution."""
    weight = _per_group(conv.weight, conv.groups, groups)
    return weight if conv.transposed else weight.transpose(1, 2)
