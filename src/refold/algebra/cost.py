"""What an operator costs: parameters, multiply-adds, and the measure that rules must lower."""

from __future__ import annotations

from functools import singledispatch
from math import prod
from typing import NamedTuple

from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Operator,
    Pad,
    Resample,
    Select,
    Sequence,
    Sum,
    leaves,
)
from refold.algebra.row import Unflatten


def parameters(op: Operator) -> int:
    """Return how many weights, biases, scales and shifts the operator holds."""
    total = 0
    for leaf in leaves(op):
        tensors = (
            (leaf.weight, leaf.bias)
            if isinstance(leaf, Conv)
            else (leaf.scale, leaf.shift)
            if isinstance(leaf, Affine)
            else ()
        )
        total += sum(t.numel() for t in tensors if t is not None)
    return total


def work(op: Operator, density: float = 1.0) -> float:
    """Return multiply-adds per input position: what decides whether a merge is worth it.

    Borders are neglected, strides are not. A scale or a pooling tap counts as one multiply-add per
    channel it touches.

    Args:
        op: the operator.
        density: positions at its input per position of the whole expression's input.

    Example:
        >>> import torch
        >>> from refold.algebra.operator import points
        >>> work(Conv(torch.ones(8, 4, 1, 1), None, points(2)))
        32.0
    """
    return _walk(op, _Flow(0.0, density, 0)).work


class _Flow(NamedTuple):
    work: float
    density: float
    channels: int


@singledispatch
def _walk(op: Operator, flow: _Flow) -> _Flow:
    return flow


@_walk.register
def _walk_conv(op: Conv, flow: _Flow) -> _Flow:
    strides = prod(axis.stride for axis in op.axes)
    outputs = flow.density * strides if op.transposed else flow.density / strides
    reads = flow.density if op.transposed else outputs
    return _Flow(flow.work + op.weight.numel() * reads, outputs, op.out_channels)


@_walk.register
def _walk_affine(op: Affine, flow: _Flow) -> _Flow:
    vector = op.scale if op.scale is not None else op.shift
    channels = flow.channels if vector is None else max(flow.channels, vector.numel())
    return _Flow(flow.work + channels * flow.density, flow.density, channels)


@_walk.register
def _walk_pool(op: AvgPool, flow: _Flow) -> _Flow:
    outputs = flow.density / prod(axis.stride for axis in op.axes)
    taps = prod(axis.kernel for axis in op.axes)
    return _Flow(flow.work + flow.channels * taps * outputs, outputs, flow.channels)


@_walk.register
def _walk_resample(op: Resample, flow: _Flow) -> _Flow:
    return flow._replace(density=flow.density * op.density)


@_walk.register
def _walk_flatten(op: Flatten, flow: _Flow) -> _Flow:
    return flow._replace(density=flow.density / op.positions, channels=flow.channels * op.positions)


@_walk.register
def _walk_unflatten(op: Unflatten, flow: _Flow) -> _Flow:
    positions = prod(op.size)
    return flow._replace(density=flow.density * positions, channels=flow.channels // positions)


@_walk.register
def _walk_select(op: Select, flow: _Flow) -> _Flow:
    return flow._replace(channels=len(op.index))


@_walk.register
def _walk_sequence(op: Sequence, flow: _Flow) -> _Flow:
    for part in op.parts:
        flow = _walk(part, flow)
    return flow


@_walk.register
def _walk_sum(op: Sum, flow: _Flow) -> _Flow:
    branches = [_walk(part, flow._replace(work=0.0)) for part in op.parts]
    last = branches[0]
    additions = (len(branches) - 1) * max(b.channels for b in branches) * last.density
    return last._replace(work=flow.work + sum(b.work for b in branches) + additions)


@_walk.register
def _walk_concat(op: Concat, flow: _Flow) -> _Flow:
    branches = [_walk(part, flow._replace(work=0.0)) for part in op.parts]
    total = flow.work + sum(b.work for b in branches)
    return _Flow(total, branches[0].density, sum(b.channels for b in branches))


def measure(op: Operator) -> tuple[int, int, int]:
    """Return what every rewrite must lower: leaves, then joins, then leaves that are light.

    Values are whole numbers of a well-ordered set, so rewriting ends.
    """
    all_leaves = leaves(op)
    light = sum(1 for leaf in all_leaves if isinstance(leaf, (Affine, Pad, Select, AvgPool)))
    return len(all_leaves), _joins(op), light


def _joins(op: Operator) -> int:
    if not isinstance(op, (Sequence, Sum, Concat)):
        return 0
    return (0 if isinstance(op, Sequence) else len(op.parts) - 1) + sum(_joins(p) for p in op.parts)
