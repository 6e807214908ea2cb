"""Maps of one known size as rows of numbers: where a convolution is a matrix like any other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from refold.algebra.geometry import Axis
from refold.algebra.operator import Conv, Operator, Resample
from refold.errors import GeometryError

Size = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Unflatten(Operator):
    """A row laid out as a map: (C * positions, *ones) -> (C, *size), `Flatten` undone.

    Args:
        size: spatial sizes of the map.
        rank: spatial axes of the row, one position each.
    """

    size: Size
    rank: int = 0


@dataclass(frozen=True, eq=False)
class Reshaped(Resample):
    """A reshape that leaves the channel axis whole and all numbers in their order."""


class _Run(NamedTuple):
    """Outputs `out + k * out_step` of one axis read inputs `start + k * in_step`, k < length."""

    out: int
    start: int
    length: int
    out_step: int = 1
    in_step: int = 1


def size_after(conv: Conv, size: Size) -> Size:
    """Return the spatial sizes of a convolution's value on maps of one size.

    Raises:
        GeometryError: when the kernel does not fit the map.
    """
    if len(size) != len(conv.axes):
        raise GeometryError(f"maps of {size} do not have {len(conv.axes)} spatial axes")
    pairs = list(zip(conv.axes, size, strict=True))
    out = tuple(a.transposed_size(n) if conv.transposed else a.out_size(n) for a, n in pairs)
    if min((*out, *size), default=1) < 1:
        padding = tuple((axis.lo, axis.hi) for axis in conv.axes)
        kernel = tuple(axis.kernel for axis in conv.axes)
        raise GeometryError(f"kernel {kernel} does not fit maps of {size} with padding {padding}")
    return out


def as_matrix(conv: Conv, size: Size, dtype: torch.dtype) -> Conv:
    """Return a convolution on maps of one size as the grouped matrix it is on flattened maps.

    Every kernel tap is written to the places where it acts; nothing is convolved.

    Shape:
        weight (O * positions_out, I/groups * positions_in); bias (O * positions_out,).

    Raises:
        GeometryError: when the kernel does not fit the map.

    Exact when:
        always, for maps of that size.

    Example:
        >>> conv = Conv(torch.ones(1, 1, 2), None, (Axis(2),))
        >>> as_matrix(conv, (3,), torch.float32).weight.tolist()
        [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]

    Source: RepMLP, arXiv:2105.01883, section 3.3, which pushes an identity matrix through.
    """
    out = size_after(conv, size)
    inputs = conv.in_channels // conv.groups
    total = torch.zeros(
        conv.out_channels, *out, inputs, *size, dtype=dtype, device=conv.weight.device
    )
    add_taps(total, conv, gathered(conv))
    matrix = total.reshape(conv.out_channels * prod(out), inputs * prod(size))
    bias = None if conv.bias is None else conv.bias.to(dtype).repeat_interleave(prod(out))
    return Conv(matrix, bias, (), conv.groups)


def gathered(conv: Conv) -> Tensor:
    """Return the weight as (O, I/groups, *kernel), however it is stored."""
    if not conv.transposed:
        return conv.weight
    return conv.weight.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)


def add_taps(total: Tensor, conv: Conv, weight: Tensor, first: int = 0) -> None:
    """Add a convolution's taps onto a matrix that is laid out by channels and positions.

    Args:
        total: what is added to, some rows of the matrix.
        conv: tells windows and padding.
        weight: its kernel (see `gathered`) for the channels of these rows.
        first: of the outputs along the first axis, where these rows start.

    Shape:
        total (O, *out, I/groups, *in); weight (O, I/groups, *kernel).
    """
    rank, steps = len(conv.axes), total.stride()
    out, size = total.shape[1 : rank + 1], total.shape[rank + 2 :]
    starts = (first, *(0,) * rank)[:rank]
    taps = [
        [_clipped(_runs(conv, axis, tap, n), start, m) for tap in range(axis.kernel)]
        for axis, n, start, m in zip(conv.axes, size, starts, out, strict=True)
    ]
    for tap in product(*(range(axis.kernel) for axis in conv.axes)):
        values = weight[(slice(None), slice(None), *tap)].to(total.dtype)
        values = values.reshape(values.shape[0], *(1,) * rank, values.shape[1])
        for runs in product(*(list(taps[i][t]) for i, t in enumerate(tap))):
            _at(total, steps, runs).add_(values)


def _at(total: Tensor, steps: tuple[int, ...], runs: tuple[_Run, ...]) -> Tensor:
    """Return the places where one tap acts, as a view (O, *counts, I/groups)."""
    rank, offset = len(runs), total.storage_offset()
    shape, strides = [total.shape[0]], [steps[0]]
    for run, outer, inner in zip(runs, steps[1:], steps[rank + 2 :], strict=False):
        shape.append(run.length)
        strides.append(run.out_step * outer + run.in_step * inner)
        offset += run.out * outer + run.start * inner
    return total.as_strided([*shape, total.shape[rank + 1]], [*strides, steps[rank + 1]], offset)


def _runs(conv: Conv, axis: Axis, tap: int, size: int) -> Iterator[_Run]:
    """Yield which outputs read which inputs along one axis through one tap."""
    shift = axis.dilation * tap - axis.lo
    outputs = axis.transposed_size(size) if conv.transposed else axis.out_size(size)
    step, steps, limit = axis.stride, *((size, outputs) if conv.transposed else (outputs, size))
    start, end = max(0, -(shift // step)), min(steps - 1, (limit - 1 - shift) // step)
    inside = range(start, end + 1)
    if inside and conv.transposed:
        yield _Run(step * start + shift, start, len(inside), step, 1)
    elif inside:
        yield _Run(start, step * start + shift, len(inside), 1, step)
    if conv.mode != "zeros" and not conv.transposed:
        for i in (i for i in range(outputs) if i not in inside):
            yield _Run(i, _beyond(step * i + shift, size, conv.mode), 1)


def _beyond(position: int, size: int, mode: str) -> int:
    """Return the input that a position outside the map stands for."""
    if mode == "replicate":
        return min(max(position, 0), size - 1)
    if mode == "circular":
        return position % size
    mirrored = -position if position < 0 else 2 * (size - 1) - position
    if not 0 <= mirrored < size:
        raise GeometryError(f"reflection reaches beyond a map of {size} positions")
    return mirrored


def _clipped(runs: Iterator[_Run], first: int, count: int) -> list[_Run]:
    """Return what of these runs lies among `count` outputs from `first` on."""
    found: list[_Run] = []
    for run in runs:
        low = max(0, -((run.out - first) // run.out_step))
        high = min(run.length - 1, (first + count - 1 - run.out) // run.out_step)
        if low <= high:
            out, start = run.out + low * run.out_step, run.start + low * run.in_step
            found.append(run._replace(out=out - first, start=start, length=high - low + 1))
    return found
