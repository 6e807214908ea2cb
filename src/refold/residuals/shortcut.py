"""The affine side of a residual: as windows and a matrix that the branch's convolutions can carry.

A shortcut is at most one window (a subsampling, an average pool, a convolution) and one matrix over
channels. The window goes into a convolution of the branch whose own window holds it; the matrix
goes where both sides are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from refold.algebra.geometry import Axes, Axis
from refold.algebra.operator import (
    AvgPool,
    Conv,
    Identity,
    Operator,
    Select,
    chain,
    points,
    sequence,
)
from refold.engine.simplify import simplify
from refold.errors import GeometryError, RefusedError
from refold.residuals.reserve import Carry
from refold.rules.weights import as_conv, regroup


@dataclass(frozen=True, eq=False)
class Shortcut:
    """A shortcut in normal form: first a choice of channels, then the window, then the matrix.

    Args:
        chosen: the channels of the block's input that enter, in order.
        window: a pool, a subsampling (a pool of one position) or a convolution.
        point: a pointwise convolution.
    """

    chosen: tuple[int, ...]
    window: AvgPool | Conv | None = None
    point: Conv | None = None

    @property
    def channels(self) -> int:
        """How many channels enter."""
        return len(self.chosen)

    @property
    def keeps_channels(self) -> bool:
        """Whether every channel only meets itself, unscaled."""
        return self.point is None and not isinstance(self.window, Conv)


def normal_form(ops: Sequence[Operator], channels: int, rank: int) -> Shortcut:
    """Return the shortcut that these operators make.

    Args:
        ops: from the block's input on.
        channels: of that input.
        rank: spatial axes.

    Raises:
        RefusedError: when it is none of a window and a matrix.

    Examples:
        >>> import torch
        >>> conv = Conv(torch.ones(4, 2, 1, 1), None, (Axis(1, stride=2),) * 2)
        >>> short = normal_form([conv], 2, 2)
        >>> type(short.window).__name__, short.point.out_channels
        ('AvgPool', 4)
    """
    found = Shortcut(tuple(range(channels)))
    for op in chain(simplify(sequence(*ops)).op):
        if isinstance(op, Identity):
            continue
        if isinstance(op, Select) and _may_choose(found, op):
            found = replace(found, chosen=tuple(found.chosen[at] for at in op.index))
            channels = found.channels
            continue
        if isinstance(op, AvgPool):
            found = _with_window(found, op)
            continue
        try:
            conv = as_conv(op, channels, rank)
        except GeometryError as error:
            raise RefusedError(f"its shortcut cannot be carried: {error}") from error
        if conv.transposed or (conv.zero_pads and found.window is not None):
            raise RefusedError("its shortcut holds a convolution that cannot be carried")
        if any(axis.kernel > 1 or axis.lo or axis.hi for axis in conv.axes):
            found = _with_window(found, conv)
        else:
            found = _with_matrix(found, conv)
        channels = conv.out_channels
    return found


def _may_choose(found: Shortcut, op: Select) -> bool:
    """Say whether a choice comes first, and takes no channel twice."""
    return found.window is None and found.point is None and len({*op.index}) == len(op.index)


def _with_window(found: Shortcut, window: AvgPool | Conv) -> Shortcut:
    if found.window is not None or found.point is not None:
        raise RefusedError("its shortcut is more than one window and one projection")
    return replace(found, window=window)


def _with_matrix(found: Shortcut, conv: Conv) -> Shortcut:
    if any(axis.stride > 1 for axis in conv.axes):
        found = _with_window(found, AvgPool(conv.axes))
    flat = replace(conv, axes=points(len(conv.axes)), mode="zeros")
    both = sequence(found.point or Identity(), flat)
    merged = simplify(both, allow_growth=True).op  # what was cheaper apart is one matrix here
    if not isinstance(merged, Conv):
        raise RefusedError("its shortcut holds two projections that are not one")
    return replace(found, point=merged)


def carries(shortcut: Shortcut, stages: Sequence[Conv]) -> list[Carry]:
    """Return what each convolution of the branch does to the carried channels.

    Args:
        shortcut: the other side.
        stages: the branch's convolutions, in order; the last one adds.

    Raises:
        RefusedError: when no convolution's window holds the shortcut's.
    """
    at = _stage_of_window(shortcut, stages)
    found: list[Carry] = []
    channels = shortcut.channels
    for place, stage in enumerate(stages):
        taps = _centre(stage) if place != at else ()
        bias = None
        if place == at and isinstance(shortcut.window, AvgPool):
            factor = shortcut.window.factor
            taps = tuple((tap, factor) for tap in _taps(shortcut.window.axes, stage))
        elif place == at and isinstance(shortcut.window, Conv):
            taps, bias = _dense_taps(shortcut.window, stage), shortcut.window.bias
            channels = shortcut.window.out_channels
        found.append(Carry(taps, channels, bias))
    if shortcut.point is not None:
        found[-1] = _projected(found[-1], shortcut.point)
    return found


def _projected(carry: Carry, point: Conv) -> Carry:
    """Return the last convolution's part with the projection in it."""
    if carry.mixes or carry.bias is not None:
        raise RefusedError("its shortcut's window and projection do not fit in one layer")
    weight = regroup(point.weight.detach(), point.groups, 1).flatten(1)
    taps = tuple((tap, weight if factor == 1 else weight * factor) for tap, factor in carry.taps)
    return Carry(taps, point.out_channels, point.bias)


def _stage_of_window(shortcut: Shortcut, stages: Sequence[Conv]) -> int | None:
    """Return the convolution whose window takes the shortcut's in; None where strides alone do."""
    axes = shortcut.window.axes if shortcut.window is not None else points(len(stages[0].axes))
    strides = [tuple(axis.stride for axis in stage.axes) for stage in stages]
    total = tuple(prod(column) for column in zip(*strides, strict=True))
    if total != tuple(axis.stride for axis in axes):
        raise RefusedError("its two sides have different strides")
    plain = isinstance(shortcut.window, AvgPool) and shortcut.window.factor == 1
    if shortcut.window is None or (plain and all(a.kernel == 1 and not a.lo for a in axes)):
        return None
    for place in reversed(range(len(stages))):
        if strides[place] == total and _fits(shortcut.window, stages[place]):
            return place
    raise RefusedError("no convolution of the branch has a window as large as the shortcut's")


def _fits(window: AvgPool | Conv, stage: Conv) -> bool:
    zeros = stage.mode == "zeros" and (isinstance(window, AvgPool) or window.mode == "zeros")
    pairs = zip(window.axes, stage.axes, strict=True)
    return zeros and all(set(a.offsets) <= set(b.offsets) and _reaches(b) for a, b in pairs)


def _reaches(axis: Axis) -> bool:
    """Say whether the window has an output for every position that a stride alone would pick."""
    return axis.slack >= -1


def _centre(stage: Conv) -> tuple[tuple[tuple[int, ...], float], ...]:
    if not all(0 in axis.offsets and _reaches(axis) for axis in stage.axes):
        raise RefusedError("a convolution of the branch does not read its own position")
    return ((tuple(axis.offsets.index(0) for axis in stage.axes), 1.0),)


def _taps(axes: Axes, stage: Conv) -> list[tuple[int, ...]]:
    """Return where the taps of a window lie in the stage's kernel, in row-major order."""
    found: list[tuple[int, ...]] = [()]
    for axis, holder in zip(axes, stage.axes, strict=True):
        places = [holder.offsets.index(offset) for offset in axis.offsets]
        found = [(*tap, place) for tap in found for place in places]
    return found


def _dense_taps(window: Conv, stage: Conv) -> tuple[tuple[tuple[int, ...], Tensor], ...]:
    weight = regroup(window.weight.detach(), window.groups, 1).flatten(2)
    return tuple((tap, weight[:, :, i]) for i, tap in enumerate(_taps(window.axes, stage)))
