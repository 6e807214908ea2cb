"""Maps of one known size as rows of numbers: where a convolution is a matrix like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from refold.algebra.geometry import Axis
from refold.algebra.operator import Affine, Conv, Flatten, Operator, Resample, leaves
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


def fixes_size(parts: Sequence[Operator]) -> bool:
    """Say whether a chain holds numbers for each position of a row, and so maps of one size alone.

    Examples:
        >>> from refold.algebra.operator import Affine, Flatten
        >>> each, row = Affine(scale=torch.ones(4)), Flatten((3, 3))
        >>> fixes_size([each, row]), fixes_size([row, each]), fixes_size([each, Unflatten((2, 2))])
        (False, True, True)
    """
    in_row = False
    held = False  # numbers since the last change of layout
    for part in parts:
        if isinstance(part, (Flatten, Unflatten)):
            if held and (in_row or isinstance(part, Unflatten)):
                return True
            in_row, held = isinstance(part, Flatten), False
        else:
            held = held or any(map(_is_by_channel, leaves(part)))
    return held and in_row


def _is_by_channel(leaf: Operator) -> bool:
    return isinstance(leaf, Conv) or (isinstance(leaf, Affine) and leaf.channels is not None)


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

    Examples:
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
    Taps(conv).add_to(total)
    matrix = total.reshape(conv.out_channels * prod(out), inputs * prod(size))
    bias = None if conv.bias is None else conv.bias.to(dtype).repeat_interleave(prod(out))
    return Conv(matrix, bias, (), conv.groups)


class Taps:
    """A convolution's kernel, ready to be written into its matrix on maps of one size.

    Args:
        conv: the convolution; its bias is left out.
    """

    def __init__(self, conv: Conv) -> None:
        self.conv, rank = conv, len(conv.axes)
        weight = conv.weight
        if conv.transposed:
            weight = weight.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)
        rows, columns = weight.shape[:2]
        each = weight.reshape(rows, columns, -1).permute(2, 0, 1)
        self.values = each.reshape(-1, rows, *(1,) * rank, columns)
        self._places: dict[tuple[object, ...], list[_Place]] = {}

    def add_to(self, total: Tensor, channels: slice = slice(None), first: int = 0) -> None:
        """Add the taps to rows of the matrix, laid out by channels and positions.

        Args:
            total: the rows; contiguous but for their own axis.
            channels: whose rows they are.
            first: of the outputs along the first spatial axis, where they start.

        Shape:
            total (O, *out, I/groups, *in).
        """
        key = first, total.shape[1:], total.stride()
        if key not in self._places:
            self._places[key] = list(self._find(total.shape, total.stride(), first))
        if total.is_meta:  # whether it fits is all there is to find out
            return
        count, step, start = total.shape[0], total.stride(0), total.storage_offset()
        for tap, shape, strides, offset in self._places[key]:
            place = total.as_strided((count, *shape), (step, *strides), start + offset)
            place.add_(self.values[tap][channels])

    def _find(self, shape: Size, steps: Size, first: int) -> Iterator[_Place]:
        conv, rank = self.conv, len(self.conv.axes)
        starts = (first, *(0,) * rank)[:rank]
        rows = zip(conv.axes, shape[rank + 2 :], starts, shape[1:], strict=False)
        along = [
            [_clipped(_runs(conv, axis, tap, n), start, out) for tap in range(axis.kernel)]
            for axis, n, start, out in rows
        ]
        for tap, at in enumerate(product(*(range(axis.kernel) for axis in conv.axes))):
            for runs in product(*(along[axis][t] for axis, t in enumerate(at))):
                pairs = list(zip(runs, steps[1:], steps[rank + 2 :], strict=False))
                yield _Place(
                    tap,
                    (*(run.length for run in runs), shape[rank + 1]),
                    (*(r.out_step * o + r.in_step * i for r, o, i in pairs), steps[rank + 1]),
                    sum(r.out * o + r.start * i for r, o, i in pairs),
                )


class _Place(NamedTuple):
    """Where a tap acts in one row of channels: a strided view without its first axis."""

    tap: int
    shape: Size
    strides: Size
    offset: int


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
