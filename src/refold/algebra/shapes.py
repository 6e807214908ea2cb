"""Shapes: of the value of an operator, and its multiply-adds on that shape."""

from __future__ import annotations

from math import prod

import torch

from refold.algebra.operator import (
    Affine,
    AvgPool,
    Conv,
    Identity,
    Operator,
    Pad,
    Resample,
    Unshuffle,
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
    if isinstance(op, Unshuffle):
        sizes = (n // step for n, step in zip(shape[2:], op.steps, strict=True))
        return (shape[0], shape[1] * prod(op.steps), *sizes)
    if isinstance(op, Pad):
        grown = (lo + n + hi for (lo, hi), n in zip(op.amounts, shape[2:], strict=True))
        return (*shape[:2], *grown)
    return _resampled(op, shape) if isinstance(op, Resample) else None


def _resampled(op: Resample, shape: Shape) -> Shape | None:
    try:
        return tuple(op.function(torch.empty(shape, device="meta")).shape)
    except Exception:  # a function of the model's own, on another number of channels
        return None


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
        return tuple(torch.broadcast_shapes(*known))
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
