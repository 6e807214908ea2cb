"""Weight arithmetic that several rules share: group layouts and pointwise operators as kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from refold.algebra.geometry import Axes, Axis
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Conv,
    Identity,
    Input,
    Operator,
    Pad,
    Select,
    points,
    wide,
)
from refold.errors import GeometryError


def blocks(weight: Tensor, groups: int, target: int) -> Tensor:
    """Return a weight of `target` groups as (target, m, first/groups, m, second, *kernel).

    Only the diagonal over the two m axes is filled when a weight of `groups` groups is stored for
    fewer.
    """
    ratio = groups // target
    return weight.unflatten(0, (target, ratio, -1)).unflatten(3, (ratio, -1))


def regroup(weight: Tensor, groups: int, target: int) -> Tensor:
    """Return a grouped weight as one of fewer groups, zeros between the old groups.

    Args:
        weight: a convolution's weight, transposed or not.
        groups: its groups.
        target: a divisor of `groups`.

    Shape:
        (A, B/groups, *kernel) -> (A, B/target, *kernel).

    Examples:
        >>> regroup(torch.ones(2, 1), 2, 1).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if groups == target:
        return weight
    ratio = groups // target
    dense = weight.new_zeros(weight.shape[0], weight.shape[1] * ratio, *weight.shape[2:])
    add_blocks(dense, weight, groups, target)
    return dense


def add_blocks(total: Tensor, weight: Tensor, groups: int, target: int) -> None:
    """Add a weight of `groups` groups onto `total`, which is laid out for `target` groups."""
    if total.is_meta:  # without storage the shape is all there is
        return
    if groups == target:
        total += weight
        return
    ratio = groups // target
    diagonal = torch.arange(ratio, device=weight.device)
    part = wide(weight).unflatten(0, (target, ratio, -1)).transpose(0, 1)
    view = blocks(total, groups, target)
    view[:, diagonal, :, diagonal] += part.to(total.dtype)


def per_channel(vector: Tensor, channels: int, device: torch.device | None) -> Tensor:
    """Return a scale or shift as one float64 value per channel, on the device of what it meets."""
    moved = wide(vector).to(device)
    return moved.expand(channels) if vector.ndim == 0 else moved


def channels_into(op: Operator) -> int | None:
    """Return how many channels enter a leaf, None when nothing in it tells."""
    if isinstance(op, Conv):
        return op.in_channels
    return op.channels if isinstance(op, (Select, Input, Affine)) else None


def rank_of(parts: tuple[Operator, ...]) -> int:
    """Return the spatial axes of leaves in a row.

    Raises:
        GeometryError: when none of them tells.
    """
    for part in parts:
        if isinstance(part, (Conv, AvgPool)):
            return len(part.axes)
        if isinstance(part, Pad):
            return len(part.amounts)
    raise GeometryError("the number of spatial axes is unknown; pass example_inputs")


def device_of(parts: Iterable[Operator]) -> torch.device | None:
    """Return where the largest rank of tensor in these leaves lives, None when they hold none.

    A factor without axes may live anywhere: it is moved to the weights that it meets.
    """
    found = [v for part in parts for v in vars(part).values() if isinstance(v, Tensor)]
    return max(found, key=Tensor.dim).device if found else None


def turned(conv: Conv, transposed: bool = False) -> Conv:
    """Return a pointwise convolution that scatters or gathers: there, both are the same.

    Any other convolution comes back as it is.

    Examples:
        >>> turned(Conv(torch.ones(2, 3, 1), None, points(1), transposed=True)).weight.shape
        torch.Size([3, 2, 1])
    """
    if conv.transposed == transposed or not conv.is_pointwise:
        return conv
    weight = conv.weight.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)
    return replace(conv, weight=weight, transposed=transposed)


def with_rank(conv: Conv, rank: int) -> Conv:
    """Return a pointwise convolution as one of maps with other spatial axes, its groups kept.

    Examples:
        >>> with_rank(Conv(torch.ones(2, 3), None, ()), 2).weight.shape
        torch.Size([2, 3, 1, 1])
    """
    if rank == len(conv.axes):
        return conv
    weight = conv.weight.reshape(*conv.weight.shape[:2], *(1,) * rank)
    return replace(conv, weight=weight, axes=points(rank))


def as_conv(
    op: Operator, channels: int | None, rank: int, device: torch.device | None = None
) -> Conv:
    """Return an operator that is a convolution in all but name as a convolution.

    Identity, scale and shift, average pool, zero pad and crop become depthwise, a choice of
    channels dense.

    Raises:
        GeometryError: when the number of channels is unknown or does not fit, or a ring is not of
            zeros.

    Source: DBB, arXiv:2103.13425, Transforms V and VI; RepVGG, arXiv:2101.03697, section 3.3.
    """
    if isinstance(op, Conv):
        return op
    if channels is None:
        raise GeometryError("the number of channels is unknown; pass example_inputs")
    if isinstance(op, AvgPool):
        kernel = tuple(axis.kernel for axis in op.axes)
        weight = torch.full((channels, 1, *kernel), op.factor, dtype=torch.float64, device=device)
        return Conv(weight, None, op.axes, channels)
    if isinstance(op, (Identity, Pad)):
        ones = torch.ones(channels, dtype=torch.float64, device=device)
        return _diagonal(ones, None, points(rank)) if isinstance(op, Identity) else _ring(op, ones)
    if isinstance(op, Select):
        if op.channels != channels:
            raise GeometryError(f"a choice among {op.channels} channels does not fit {channels}")
        eye = torch.zeros(len(op.index), channels, dtype=torch.float64, device=device)
        eye[range(len(op.index)), op.index] = 1.0
        return Conv(eye.reshape(*eye.shape, *(1,) * rank), None, points(rank))
    if isinstance(op, Affine):
        sized = [v for v in (op.scale, op.shift) if v is not None and v.ndim == 1]
        if any(vector.shape[0] != channels for vector in sized):
            raise GeometryError(f"{sized[0].shape[0]} scales do not fit {channels} channels")
        device = device or device_of([op])
        ones = torch.ones(channels, dtype=torch.float64, device=device)
        scale = ones if op.scale is None else per_channel(op.scale, channels, device)
        shift = None if op.shift is None else per_channel(op.shift, channels, device)
        return _diagonal(scale, shift, points(rank))
    raise GeometryError(f"{type(op).__name__} is not a convolution")


def _ring(pad: Pad, ones: Tensor) -> Conv:
    if pad.value and pad.grows:
        raise GeometryError(f"the ring is filled with {pad.value}, not with zeros")
    axes = tuple(Axis(lo=lo, hi=hi) for lo, hi in pad.amounts)
    return replace(_diagonal(ones, None, axes), mode=pad.mode)


def _diagonal(scale: Tensor, shift: Tensor | None, axes: Axes) -> Conv:
    weight = scale.reshape(-1, 1, *(1,) * len(axes))
    return Conv(weight, shift, axes, groups=scale.shape[0])
