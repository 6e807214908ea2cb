"""Sizes: the shape of an operator's value, and its multiply-adds on that shape."""

from __future__ import annotations

from math import prod

from refold.algebra.operator import Affine, AvgPool, Conv, Identity, Operator, Pad

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
    if isinstance(op, Pad):
        grown = (lo + n + hi for (lo, hi), n in zip(op.amounts, shape[2:], strict=True))
        return (*shape[:2], *grown)
    return None


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
