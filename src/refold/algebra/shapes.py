"""Shapes: of the value of an operator, and its multiply-adds on that shape."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from refold.algebra.arithmetic import spread
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Conv,
    Identity,
    Operator,
    Pad,
    Patches,
    Resample,
)

Shape = tuple[int, ...]


def shape_after(op: Operator, shape: Shape | None) -> Shape | None:
    """Return the shape of op(x) for x of `shape` (N, C, *spatial), None where it cannot be told."""
    if shape is None or isinstance(op, (Affine, Identity)):
        return shape
    if isinstance(op, Conv):
        if not op.axes:
            return (*shape[:-1], op.out_channels)
        sizes = zip(op.axes, shape[2:], strict=True)
        spatial = (a.transposed_size(n) if op.transposed else a.out_size(n) for a, n in sizes)
        return (shape[0], op.out_channels, *spatial)
    if isinstance(op, AvgPool):
        return (*shape[:2], *(a.out_size(n) for a, n in zip(op.axes, shape[2:], strict=True)))
    if isinstance(op, Patches):
        sizes = (axis.out_size(n) for axis, n in zip(op.axes, shape[2:], strict=True))
        return (shape[0], shape[1] * prod(op.kernel), *sizes)
    if isinstance(op, Pad):
        grown = (lo + n + hi for (lo, hi), n in zip(op.amounts, shape[2:], strict=True))
        return (*shape[:2], *grown)
    return _resampled(op, shape) if isinstance(op, Resample) else None


def _resampled(op: Resample, shape: Shape) -> Shape | None:
    told = _pooled_by(op.function, shape)
    if told is not None:
        return told
    try:
        return tuple(op.function(torch.empty(shape, device="meta")).shape)
    except Exception:  # a function of the model's own, on another number of channels
        return None


def _pooled_by(function: Any, shape: Shape) -> Shape | None:
    """Tell what an adaptive pool or a mean gives, without running it."""
    if isinstance(function, nn.AdaptiveAvgPool2d):
        return pooled(shape, function.output_size)
    called = getattr(function, "func", None)
    if called is functional.adaptive_avg_pool2d:
        return pooled(shape, **function.keywords)
    return averaged(shape, **function.keywords) if called is torch.mean else None


def pooled(shape: Shape, output_size: Any) -> Shape | None:
    """Return the shape after an adaptive pool of a map with two axes, None where it is unusual."""
    wanted = output_size if isinstance(output_size, tuple | list) else [output_size] * 2
    after = [n if m is None else m for n, m in zip(shape[2:], wanted, strict=False)]
    is_usual = len(shape) == 4 and len(after) == 2 and min(shape[1:]) > 0
    return (*shape[:2], *after) if is_usual else None


def averaged(shape: Shape, dim: Any = None, keepdim: bool = False) -> Shape | None:
    """Return the shape after a mean over some axes, None where it is unusual.

    Examples:
        >>> averaged((2, 3, 8, 8), (-1, 2)), averaged((2, 3, 8), 1, keepdim=True)
        ((2, 3), (2, 1, 8))
    """
    dims = [dim] if isinstance(dim, int) else dim or ()
    axes = {n + len(shape) if n < 0 else n for n in dims}
    if not axes or not axes <= set(range(len(shape))):
        return None
    kept = [1 if at in axes else n for at, n in enumerate(shape)]
    return tuple(kept) if keepdim else tuple(n for at, n in enumerate(kept) if at not in axes)


def joined(shapes: list[Shape | None], rank: int | None = None) -> Shape | None:
    """Return the shape of values added, or laid side by side along the channels of `rank`.

    Examples:
        >>> joined([(2, 3, 8, 8), (2, 1, 1, 1)]), joined([(2, 3, 8, 8), (2, 1, 8, 8)], rank=2)
        ((2, 3, 8, 8), (2, 4, 8, 8))
    """
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    if rank is None:
        return spread(*(torch.empty(shape, device="meta") for shape in known))
    at = len(known[0]) - 1 - rank
    return (*known[0][:at], sum(shape[at] for shape in known), *known[0][at + 1 :])


def multiply_adds(op: Operator, before: Shape | None, after: Shape | None) -> int | None:
    """Return the multiply-adds of a leaf between two shapes: 0 unless it holds a matrix.

    Counted as the field does: weights times positions, biases and scales left out.
    """
    if not isinstance(op, Conv):
        return 0
    shape = before if op.transposed else after
    if shape is None:
        return None
    channels = op.in_channels if op.transposed else op.out_channels
    return op.weight.numel() * prod(shape) // channels
