"""What an operator costs: parameters, multiply-adds, and the measure that rules must lower."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from math import prod
from typing import NamedTuple

from refold.algebra.geometry import Axis
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Operator,
    Pad,
    Patches,
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

    The map is taken to be very large, so that borders count only where all else is equal. A scale
    or a pooling tap counts as one multiply-add per channel it touches.

    Args:
        op: the operator.
        density: positions at its input per position of the whole expression's input.

    Examples:
        >>> import torch
        >>> from refold.algebra.operator import points
        >>> work(Conv(torch.ones(8, 4, 1, 1), None, points(2)))
        32.0
    """
    return _walk(op, _Flow(0.0, density, 0)).work


_LARGE = 2.0**24
"""Positions along every axis of the map that `work` imagines."""


class _Flow(NamedTuple):
    work: float
    share: float
    channels: int
    sizes: tuple[float, ...] = ()

    @property
    def density(self) -> float:
        """Positions per position of the whole expression's input."""
        return self.share * prod(size / _LARGE for size in self.sizes)

    def resized(self, change: list[Callable[[float], float]]) -> _Flow:
        """Return the flow with the size along each axis changed."""
        known = len(self.sizes) == len(change)  # else the layout changed: start anew from here
        sizes = self.sizes if known else (_LARGE,) * len(change)
        after = tuple(f(size) for f, size in zip(change, sizes, strict=True))
        return self._replace(share=self.share if known else self.density, sizes=after)


@singledispatch
def _walk(op: Operator, flow: _Flow) -> _Flow:
    return flow


@_walk.register
def _walk_conv(op: Conv, flow: _Flow) -> _Flow:
    after = flow.resized([_scattered(a) if op.transposed else _gathered(a) for a in op.axes])
    reads = flow.density if op.transposed else after.density
    return after._replace(work=flow.work + op.weight.numel() * reads, channels=op.out_channels)


def _gathered(axis: Axis) -> Callable[[float], float]:
    return lambda size: (size + axis.lo + axis.hi - axis.span) / axis.stride + 1


def _scattered(axis: Axis) -> Callable[[float], float]:
    return lambda size: (size - 1) * axis.stride + axis.span - axis.lo - axis.hi


@_walk.register
def _walk_affine(op: Affine, flow: _Flow) -> _Flow:
    vector = op.scale if op.scale is not None else op.shift
    channels = flow.channels if vector is None else max(flow.channels, vector.numel())
    return flow._replace(work=flow.work + channels * flow.density, channels=channels)


@_walk.register
def _walk_pool(op: AvgPool, flow: _Flow) -> _Flow:
    after = flow.resized([_gathered(axis) for axis in op.axes])
    taps = prod(axis.kernel for axis in op.axes)
    return after._replace(work=flow.work + flow.channels * taps * after.density)


@_walk.register
def _walk_pad(op: Pad, flow: _Flow) -> _Flow:
    return flow.resized([lambda size, more=lo + hi: size + more for lo, hi in op.amounts])


@_walk.register
def _walk_patches(op: Patches, flow: _Flow) -> _Flow:
    after = flow.resized([_gathered(axis) for axis in op.axes])
    return after._replace(channels=flow.channels * prod(op.kernel))


@_walk.register
def _walk_resample(op: Resample, flow: _Flow) -> _Flow:
    return flow._replace(share=flow.density * op.density, sizes=())


@_walk.register
def _walk_flatten(op: Flatten, flow: _Flow) -> _Flow:
    return _Flow(flow.work, flow.density / op.positions, flow.channels * op.positions)


@_walk.register
def _walk_unflatten(op: Unflatten, flow: _Flow) -> _Flow:
    positions = prod(op.size)
    return _Flow(flow.work, flow.density * positions, flow.channels // positions)


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
    last = max(branches, key=lambda branch: len(branch.sizes))
    additions = (len(branches) - 1) * max(b.channels for b in branches) * last.density
    return last._replace(work=flow.work + sum(b.work for b in branches) + additions)


@_walk.register
def _walk_concat(op: Concat, flow: _Flow) -> _Flow:
    branches = [_walk(part, flow._replace(work=0.0)) for part in op.parts]
    last = max(branches, key=lambda branch: len(branch.sizes))
    total = flow.work + sum(b.work for b in branches)
    return last._replace(work=total, channels=sum(b.channels for b in branches))


def measure(op: Operator) -> tuple[int, int, int]:
    """Return what is lower after all that the engine keeps: leaves, joins, leaves that are light.

    Values are whole numbers of a well-ordered set, so rewriting ends.
    """
    all_leaves = leaves(op)
    light = sum(1 for leaf in all_leaves if isinstance(leaf, (Affine, Pad, Select, AvgPool)))
    return len(all_leaves), _joins(op), light


def _joins(op: Operator) -> int:
    if not isinstance(op, (Sequence, Sum, Concat)):
        return 0
    return (0 if isinstance(op, Sequence) else len(op.parts) - 1) + sum(_joins(p) for p in op.parts)
