"""Slices of every other position, side by side before a convolution: one with a larger stride.

YOLO's Focus layer cuts a map into its even and odd rows and columns, lays the four side by side and
convolves. A convolution with twice the kernel and twice the stride reads the same numbers.
"""

from __future__ import annotations

from math import prod

from refold.algebra.geometry import Axes, Axis
from refold.algebra.operator import (
    AvgPool,
    Concat,
    Conv,
    Input,
    Operator,
    Sequence,
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
    rank, count = len(steps), len(offsets)
    order = sorted(range(count), key=offsets.__getitem__)
    blocks = conv.weight.unflatten(1, (count, -1))[:, order].unflatten(1, steps)
    inner = [axis for at in range(rank) for axis in (2 + rank + at, 1 + at)]
    laid = blocks.permute(0, 1 + rank, *inner)
    kernel = [axis.kernel * step for axis, step in zip(conv.axes, steps, strict=True)]
    weight = laid.reshape(conv.weight.shape[0], -1, *kernel)
    return Conv(weight, conv.bias, _widened(conv.axes, steps))


def _widened(axes: Axes, steps: Offsets) -> Axes:
    return tuple(
        axis
        if step == 1
        else Axis(axis.kernel * step, axis.stride * step, 1, axis.lo * step, axis.hi * step)
        for axis, step in zip(axes, steps, strict=True)
    )
