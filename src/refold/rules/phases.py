"""Blocks of positions as channels before a convolution: one with a larger stride.

YOLO's Focus layer cuts a map into its even and odd rows and columns, lays the four side by side and
convolves; `pixel_unshuffle` does so for blocks of any size. A convolution with a kernel and stride
so many times as large reads the same numbers.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from refold.algebra.geometry import Axes, Axis
from refold.algebra.operator import (
    AvgPool,
    Concat,
    Conv,
    Input,
    Operator,
    Sequence,
    Unshuffle,
    chain,
    sequence,
)
from refold.rules.rule import Outcome, rule

Offsets = tuple[int, ...]


@rule(
    "distribute",
    exact="always: slices of even and odd positions are as long where the size is even",
    source="YOLOv5, whose later stem is the 6x6 convolution of its former Focus layer",
)
def merge_phases(op: Operator) -> Outcome:
    """A convolution of all phases of a map is one of the map, its kernel and stride larger."""
    match op:
        case Sequence((Concat(parts=branches), Conv() as conv)):
            return _merged(branches, conv)
        case _:
            return None


@rule(
    "series",
    exact="always: a map is cut into whole blocks",
    source="a block of positions is what a convolution with that kernel and stride reads",
)
def merge_unshuffle(op: Operator) -> Outcome:
    """A convolution of blocks of positions is one of the map, its kernel and stride larger."""
    match op:
        case Sequence((Unshuffle() as blocks, Conv() as conv)):
            return _of_blocks(blocks, conv)
        case _:
            return None


def _of_blocks(blocks: Unshuffle, conv: Conv) -> Outcome:
    if len(blocks.steps) != len(conv.axes) or not _fits(conv, blocks.steps):
        return None
    if conv.in_channels % prod(blocks.steps):
        return None
    sizes = (conv.in_channels // prod(blocks.steps), *blocks.steps)
    cut = conv.weight.unflatten(1, tuple(sizes[axis] for axis in blocks.order))
    back = (1 + blocks.order.index(axis) for axis in (*range(1, len(sizes)), 0))
    kernel = range(1 + len(sizes), cut.ndim)
    return _laid(conv, blocks.steps, cut.permute(0, *back, *kernel))


def _merged(branches: tuple[Operator, ...], conv: Conv) -> Outcome:
    split = [_phase(branch) for branch in branches]
    phases = [phase for phase in split if phase is not None]
    if (
        len(phases) < len(split)
        or len({source.key if source else None for source, *_ in phases}) > 1
    ):
        return None
    source, steps, _ = phases[0]
    offsets = [offset for _, _, offset in phases]
    if any(other != steps for _, other, _ in phases) or len(steps) != len(conv.axes):
        return None
    if len(set(offsets)) < len(offsets) or len(offsets) != prod(steps):
        return None
    if not _fits(conv, steps) or conv.in_channels % len(offsets):
        return None
    merged = _with_phases(conv, steps, offsets)
    return merged if source is None else sequence(source, merged)


def _phase(branch: Operator) -> tuple[Input | None, Offsets, Offsets] | None:
    """Return what a branch slices, by which steps and from where on; None for any other branch."""
    parts = chain(branch)
    source = parts[0] if isinstance(parts[0], Input) else None
    [*rest] = parts if source is None else parts[1:]
    if len(rest) != 1 or not isinstance(rest[0], AvgPool) or rest[0].divisor is not None:
        return None
    axes = rest[0].axes
    steps, offsets = tuple(a.stride for a in axes), tuple(-a.lo for a in axes)
    is_slice = all(a.kernel == 1 and a.hi == 0 and 0 <= -a.lo < a.stride for a in axes)
    return (source, steps, offsets) if is_slice else None


def _fits(conv: Conv, steps: Offsets) -> bool:
    """Say whether a convolution's taps stay side by side, and its padding is that of the map."""
    if conv.transposed or conv.groups > 1:
        return False
    if conv.mode != "zeros" and any(axis.pads for axis in conv.axes):
        return False
    pairs = zip(conv.axes, steps, strict=True)
    return all(step == 1 or axis.dilation == 1 or axis.kernel == 1 for axis, step in pairs)


def _with_phases(conv: Conv, steps: Offsets, offsets: list[Offsets]) -> Conv:
    """Return the convolution of the map itself."""
    count = len(offsets)
    order = sorted(range(count), key=offsets.__getitem__)
    index = torch.tensor(order, device=conv.weight.device)
    blocks = conv.weight.unflatten(1, (count, -1)).index_select(1, index)
    return _laid(conv, steps, blocks.unflatten(1, steps))


def _laid(conv: Conv, steps: Offsets, blocks: Tensor) -> Conv:
    """Return a convolution with a kernel of blocks.

    Shape:
        blocks (O, *steps, I, *kernel).
    """
    rank = len(steps)
    inner = [axis for at in range(rank) for axis in (2 + rank + at, 1 + at)]
    kernel = [axis.kernel * step for axis, step in zip(conv.axes, steps, strict=True)]
    weight = blocks.permute(0, 1 + rank, *inner).reshape(blocks.shape[0], -1, *kernel)
    return Conv(weight, conv.bias, _widened(conv.axes, steps))


def _widened(axes: Axes, steps: Offsets) -> Axes:
    return tuple(
        axis
        if step == 1
        else Axis(axis.kernel * step, axis.stride * step, 1, axis.lo * step, axis.hi * step)
        for axis, step in zip(axes, steps, strict=True)
    )
