"""The oracle: an operator as one float64 matrix and offset, built without torch's layers.

Every equality in the tests is held against these matrices. They are written for clarity and for
small maps, and they share no code with `apply` or with the rules, so that a shared mistake cannot
hide.
"""

from __future__ import annotations

from functools import singledispatch
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from refold.algebra.geometry import Axes
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Identity,
    Input,
    Operator,
    Pad,
    Patches,
    Resample,
    Select,
    Sequence,
    Sum,
    Zero,
)
from refold.algebra.row import Unflatten
from refold.errors import GeometryError, NotAffineError

Shape = tuple[int, ...]


class DenseMap(NamedTuple):
    """y = matrix @ x + offset on flattened (C, *spatial) maps, in float64.

    Shape:
        matrix (C_out * positions_out, C_in * positions_in); offset (C_out * positions_out,).
    """

    matrix: Tensor
    offset: Tensor
    shape: Shape


def to_dense(op: Operator, shape: Shape) -> DenseMap:
    """Return `op` on maps of `shape` (C, *spatial) as a dense float64 matrix with offset.

    Raises:
        GeometryError: when the operator does not fit the shape.

    Examples:
        >>> dense = to_dense(Affine(torch.tensor([2.0, 3.0])), (2, 1))
        >>> dense.matrix.tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    size = prod(shape)
    start = DenseMap(
        torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64), shape
    )
    return _dense(op, start)


@singledispatch
def _dense(op: Operator, x: DenseMap) -> DenseMap:
    raise NotAffineError(f"{type(op).__name__} has no dense form")


def _after(x: DenseMap, matrix: Tensor, offset: Tensor | None, shape: Shape) -> DenseMap:
    moved = matrix @ x.offset
    return DenseMap(matrix @ x.matrix, moved if offset is None else moved + offset, shape)


@_dense.register
def _dense_identity(op: Identity, x: DenseMap) -> DenseMap:
    return x


@_dense.register
def _dense_input(op: Input, x: DenseMap) -> DenseMap:
    return x


@_dense.register
def _dense_zero(op: Zero, x: DenseMap) -> DenseMap:
    return DenseMap(x.matrix * 0, x.offset * 0, x.shape)


@_dense.register
def _dense_affine(op: Affine, x: DenseMap) -> DenseMap:
    channels, positions = x.shape[0], prod(x.shape[1:])
    ones = torch.ones(channels, dtype=torch.float64)
    scale = ones if op.scale is None else ones * op.scale.to(torch.float64)
    shift = ones * 0 if op.shift is None else ones * op.shift.to(torch.float64)
    rows, offset = scale.repeat_interleave(positions), shift.repeat_interleave(positions)
    return DenseMap(rows[:, None] * x.matrix, rows * x.offset + offset, x.shape)


@_dense.register
def _dense_conv(op: Conv, x: DenseMap) -> DenseMap:
    if x.shape[0] != op.in_channels:
        raise GeometryError(f"{op.in_channels} channels are required, got {x.shape[0]}")
    spatial = x.shape[1:]
    if not op.axes:
        spatial = (prod(spatial),)
        return _scatter_taps(
            op, x, spatial, spatial, {(p,): [((), (p,))] for p in range(spatial[0])}
        )
    if op.transposed:
        out = tuple(a.transposed_size(n) for a, n in zip(op.axes, spatial, strict=True))
        return _scatter_taps(op, x, spatial, out, _scattered(op.axes, spatial, out))
    out = tuple(a.out_size(n) for a, n in zip(op.axes, spatial, strict=True))
    return _scatter_taps(op, x, spatial, out, _gathered(op.axes, op.mode, spatial, out))


_Reads = dict[Shape, list[tuple[Shape, Shape]]]
"""Output position -> (tap, input position) pairs."""


def _gathered(axes: Axes, mode: str, spatial: Shape, out: Shape) -> _Reads:
    reads: _Reads = {}
    for position in product(*(range(n) for n in out)):
        reads[position] = []
        for tap in product(*(range(a.kernel) for a in axes)):
            where = [
                _border(a.stride * i + a.dilation * t - a.lo, n, mode)
                for a, i, t, n in zip(axes, position, tap, spatial, strict=True)
            ]
            if None not in where:
                reads[position].append((tap, tuple(w for w in where if w is not None)))
    return reads


def _scattered(axes: Axes, spatial: Shape, out: Shape) -> _Reads:
    reads: _Reads = {position: [] for position in product(*(range(n) for n in out))}
    for source in product(*(range(n) for n in spatial)):
        for tap in product(*(range(a.kernel) for a in axes)):
            target = tuple(
                a.stride * i + a.dilation * t - a.lo
                for a, i, t in zip(axes, source, tap, strict=True)
            )
            if target in reads:
                reads[target].append((tap, source))
    return reads


def _border(position: int, size: int, mode: str) -> int | None:
    """Return the input position that an out-of-map position stands for; None where it is a zero."""
    if 0 <= position < size:
        return position
    if mode == "reflect":
        return -position if position < 0 else 2 * (size - 1) - position
    if mode == "replicate":
        return 0 if position < 0 else size - 1
    return position % size if mode == "circular" else None


def _scatter_taps(op: Conv, x: DenseMap, spatial: Shape, out: Shape, reads: _Reads) -> DenseMap:
    channels_in, channels_out = op.in_channels, op.out_channels
    matrix = torch.zeros(channels_out, prod(out), channels_in, prod(spatial), dtype=torch.float64)
    weight = op.weight.detach().to(torch.float64)
    per_in, per_out = channels_in // op.groups, channels_out // op.groups
    for position, pairs in reads.items():
        for tap, source in pairs:
            for g in range(op.groups):
                o, i = slice(g * per_out, (g + 1) * per_out), slice(g * per_in, (g + 1) * per_in)
                block = (
                    weight[(i, slice(None), *tap)].T
                    if op.transposed
                    else weight[(o, slice(None), *tap)]
                )
                matrix[o, _flat(position, out), i, _flat(source, spatial)] += block
    bias = torch.zeros(channels_out) if op.bias is None else op.bias.detach()
    offset = bias.to(torch.float64).repeat_interleave(prod(out))
    rows = channels_out * prod(out)
    return _after(x, matrix.reshape(rows, -1), offset, (channels_out, *out))


@_dense.register
def _dense_pool(op: AvgPool, x: DenseMap) -> DenseMap:
    kernel = [a.kernel for a in op.axes]
    weight = torch.full((x.shape[0], 1, *kernel), op.factor, dtype=torch.float64)
    return _dense(Conv(weight, None, op.axes, groups=x.shape[0]), x)


@_dense.register
def _dense_pad(op: Pad, x: DenseMap) -> DenseMap:
    channels, spatial = x.shape[0], x.shape[1:]
    out = tuple(lo + n + hi for (lo, hi), n in zip(op.amounts, spatial, strict=True))
    matrix = torch.zeros(channels, prod(out), channels, prod(spatial), dtype=torch.float64)
    offset = torch.zeros(channels, prod(out), dtype=torch.float64)
    for position in product(*(range(n) for n in out)):
        where = [
            _ringed(i, pair, n, op.mode)
            for i, pair, n in zip(position, op.amounts, spatial, strict=True)
        ]
        if None in where:
            offset[:, _flat(position, out)] = op.value
        else:
            source = _flat(tuple(w for w in where if w is not None), spatial)
            for c in range(channels):
                matrix[c, _flat(position, out), c, source] = 1
    rows = channels * prod(out)
    return _after(x, matrix.reshape(rows, -1), offset.reshape(-1), (channels, *out))


def _ringed(position: int, amounts: Shape, size: int, mode: str) -> int | None:
    """Return the input position of a padded map's position: crops first, then rings of the rest."""
    before, after = (max(0, -amount) for amount in amounts)
    source = _border(position - max(0, amounts[0]), size - before - after, mode)
    return None if source is None else source + before


@_dense.register
def _dense_select(op: Select, x: DenseMap) -> DenseMap:
    rows = torch.arange(x.matrix.shape[0]).reshape(x.shape[0], -1)[list(op.index)].reshape(-1)
    return DenseMap(x.matrix[rows], x.offset[rows], (len(op.index), *x.shape[1:]))


@_dense.register
def _dense_resample(op: Resample, x: DenseMap) -> DenseMap:
    channels, spatial = x.shape[0], x.shape[1:]
    basis = torch.eye(prod(spatial), dtype=torch.float64).reshape(-1, 1, *spatial)
    columns = torch.stack([op.function(one[None]).reshape(-1) for one in basis], dim=1)
    matrix = torch.block_diag(*[columns] * channels)
    size = op.function(basis[:1]).shape
    out = tuple(size[2:]) if op.rank else (columns.shape[0],)
    return _after(x, matrix, None, (channels, *out))


@_dense.register
def _dense_flatten(op: Flatten, x: DenseMap) -> DenseMap:
    if x.shape[1:] != op.size:
        raise GeometryError(f"maps of {op.size} are required, got {x.shape[1:]}")
    return DenseMap(x.matrix, x.offset, (prod(x.shape), *((1,) * op.rank or (1,))))


@_dense.register
def _dense_unflatten(op: Unflatten, x: DenseMap) -> DenseMap:
    if prod(x.shape[1:]) != 1 or x.shape[0] % prod(op.size):
        raise GeometryError(f"a row that is a map of {op.size} is required, got {x.shape}")
    return DenseMap(x.matrix, x.offset, (x.shape[0] // prod(op.size), *op.size))


@_dense.register
def _dense_patches(op: Patches, x: DenseMap) -> DenseMap:
    channels, spatial = x.shape[0], x.shape[1:]
    out = tuple(a.out_size(n) for a, n in zip(op.axes, spatial, strict=True))
    counts = (channels, *op.kernel)
    matrix = torch.zeros(prod(counts), prod(out), channels, prod(spatial), dtype=torch.float64)
    reads = _gathered(op.axes, "zeros", spatial, out)
    for row, digits in enumerate(product(*(range(counts[d]) for d in op.order))):
        channel, *taps = (digits[op.order.index(d)] for d in range(len(counts)))
        for position, pairs in reads.items():
            for tap, source in pairs:
                if tap == tuple(taps):
                    matrix[row, _flat(position, out), channel, _flat(source, spatial)] = 1
    return _after(x, matrix.reshape(-1, x.matrix.shape[0]), None, (prod(counts), *out))


@_dense.register
def _dense_sequence(op: Sequence, x: DenseMap) -> DenseMap:
    for part in op.parts:
        x = _dense(part, x)
    return x


@_dense.register
def _dense_sum(op: Sum, x: DenseMap) -> DenseMap:
    maps = [_dense(part, x) for part in op.parts]
    if len({m.shape for m in maps}) > 1:
        raise GeometryError(f"branches of different shapes: {[m.shape for m in maps]}")
    return DenseMap(sum(m.matrix for m in maps), sum(m.offset for m in maps), maps[0].shape)  # type: ignore[arg-type]


@_dense.register
def _dense_concat(op: Concat, x: DenseMap) -> DenseMap:
    maps = [_dense(part, x) for part in op.parts]
    shape = (sum(m.shape[0] for m in maps), *maps[0].shape[1:])
    return DenseMap(torch.cat([m.matrix for m in maps]), torch.cat([m.offset for m in maps]), shape)


def _flat(position: Shape, shape: Shape) -> int:
    index = 0
    for i, n in zip(position, shape, strict=True):
        index = index * n + i
    return index
