"""Positions as channels before a convolution: one with a larger kernel.

YOLO's Focus layer cuts a map into its even and odd rows and columns, lays the four side by side and
convolves; `pixel_unshuffle` does so for blocks of any size. A convolution with a kernel and stride
so many times as large reads the same numbers. `unfold` lays out what the windows of a convolution
read: the matrix that it meets is that convolution's weight.
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
    Patches,
    Sequence,
    blocks,
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
    exact="always: it sees one window at a time, or windows that are whole blocks",
    source="a convolution is its windows times its weight as a matrix: im2col",
)
def merge_patches(op: Operator) -> Outcome:
    """A convolution of what windows read is one of the map, its kernel and stride larger."""
    match op:
        case Sequence((Patches() as patches, Conv() as conv)):
            return _of_patches(patches, conv)
        case _:
            return None


def _of_patches(patches: Patches, conv: Conv) -> Outcome:
    axes, taps = _windows_of(patches.axes, conv), prod(patches.kernel)
    if axes is None or conv.in_channels % (taps * conv.groups):
        return None
    if conv.groups > 1 and patches.order[0] != 0:
        return None
    sizes = (conv.in_channels // (taps * conv.groups), *patches.kernel)
    cut = conv.weight.unflatten(1, tuple(sizes[axis] for axis in patches.order))
    back = (1 + patches.order.index(axis) for axis in (*range(1, len(sizes)), 0))
    kernel = range(1 + len(sizes), cut.ndim)
    return _laid(conv, axes, cut.permute(0, *back, *kernel))


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
    if any(other != steps for _, other, _ in phases):
        return None
    if len(set(offsets)) < len(offsets) or len(offsets) != prod(steps):
        return None
    axes = _windows_of(blocks(*steps), conv)
    if axes is None or conv.groups > 1 or conv.in_channels % len(offsets):
        return None
    merged = _with_phases(conv, axes, steps, offsets)
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


def _windows_of(windows: Axes, conv: Conv) -> Axes | None:
    """Return what a convolution of windows reads, None where that is no window itself."""
    pads_otherwise = conv.mode != "zeros" and any(axis.pads for axis in conv.axes)
    if conv.transposed or pads_otherwise or len(windows) != len(conv.axes):
        return None
    pairs = zip(windows, conv.axes, strict=True)
    axes = tuple(axis for axis in (_widened(*pair) for pair in pairs) if axis is not None)
    return axes if len(axes) == len(windows) else None


def _widened(window: Axis, axis: Axis) -> Axis | None:
    if axis.is_point:
        return window
    if window.is_point:
        return axis
    step, is_block = window.kernel, window == Axis(window.kernel, window.kernel)
    if not is_block or (axis.dilation > 1 and axis.kernel > 1):
        return None
    return Axis(axis.kernel * step, axis.stride * step, 1, axis.lo * step, axis.hi * step)


def _with_phases(conv: Conv, axes: Axes, steps: Offsets, offsets: list[Offsets]) -> Conv:
    """Return the convolution of the map itself."""
    count = len(offsets)
    order = sorted(range(count), key=offsets.__getitem__)
    index = torch.tensor(order, device=conv.weight.device)
    cut = conv.weight.unflatten(1, (count, -1)).index_select(1, index)
    return _laid(conv, axes, cut.unflatten(1, steps))


def _laid(conv: Conv, axes: Axes, cut: Tensor) -> Conv:
    """Return a convolution with a kernel of windows.

    Shape:
        cut (O, *window, I, *kernel).
    """
    rank = len(axes)
    inner = [axis for at in range(rank) for axis in (2 + rank + at, 1 + at)]
    kernel = [axis.kernel for axis in axes]
    weight = cut.permute(0, 1 + rank, *inner).reshape(cut.shape[0], -1, *kernel)
    return Conv(weight, conv.bias, axes, conv.groups)
