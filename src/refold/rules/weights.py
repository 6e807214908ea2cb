"""Weight arithmetic that several rules share: group layouts and pointwise operators as kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from refold.algebra.geometry import Axes
from refold.algebra.operator import Affine, AvgPool, Conv, Identity, Operator, points, wide
from refold.errors import GeometryError


def blocks(weight: Tensor, groups: int, target: int) -> Tensor:
    """Return a view (target, m, first/groups, m, second, *kernel) of a weight laid out for `target` groups.

    Only the diagonal over the two m axes is filled when a weight of `groups` groups is stored for fewer.
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

    Example:
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
    if groups == target:
        total += weight
        return
    ratio = groups // target
    diagonal = torch.arange(ratio, device=weight.device)
    part = wide(weight).unflatten(0, (target, ratio, -1)).transpose(0, 1)
    view = blocks(total, groups, target)
    view[:, diagonal, :, diagonal] += part.to(total.dtype)


def per_channel(vector: Tensor, channels: int) -> Tensor:
    """Return a scale or shift as one float64 value per channel."""
    return wide(vector).expand(channels) if vector.ndim == 0 else wide(vector)


def as_conv(op: Operator, channels: int | None, rank: int) -> Conv:
    """Return an identity, a per-channel scale and shift or an average pool as a depthwise convolution.

    Raises:
        GeometryError: when the number of channels is unknown or does not fit.

    Source: DBB, arXiv:2103.13425, Transforms V and VI; RepVGG, arXiv:2101.03697, section 3.3.
    """
    if isinstance(op, Conv):
        return op
    if channels is None:
        raise GeometryError("the number of channels is unknown; pass example_inputs")
    if isinstance(op, AvgPool):
        kernel = tuple(axis.kernel for axis in op.axes)
        weight = torch.full((channels, 1, *kernel), op.factor, dtype=torch.float64)
        return Conv(weight, None, op.axes, channels)
    if isinstance(op, Identity):
        return _diagonal(torch.ones(channels, dtype=torch.float64), None, points(rank))
    if isinstance(op, Affine):
        sized = [v for v in (op.scale, op.shift) if v is not None and v.ndim == 1]
        if any(vector.shape[0] != channels for vector in sized):
            raise GeometryError(f"{sized[0].shape[0]} scales do not fit {channels} channels")
        device = next((v.device for v in (op.scale, op.shift) if v is not None), None)
        ones = torch.ones(channels, dtype=torch.float64, device=device)
        scale = ones if op.scale is None else per_channel(op.scale, channels)
        shift = None if op.shift is None else per_channel(op.shift, channels)
        return _diagonal(scale, shift, points(rank))
    raise GeometryError(f"{type(op).__name__} is not a convolution")


def _diagonal(scale: Tensor, shift: Tensor | None, axes: Axes) -> Conv:
    weight = scale.reshape(-1, 1, *(1,) * len(axes))
    return Conv(weight, shift, axes, groups=scale.shape[0])
