"""Run an operator on a feature map with torch's own layers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
from refold.errors import NotAffineError

_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_SCATTER: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def apply(op: Operator, x: Tensor | Mapping[Hashable, Tensor], rank: int = 2) -> Tensor:
    """Return op(x).

    Args:
        op: the operator.
        x: the one value every `Input` stands for, or a mapping from input keys to values.
        rank: spatial axes of the values; needed where an `Affine` or `Select` stands before any
            convolution.

    Shape:
        x (N, C, *spatial).

    Examples:
        >>> apply(Affine(torch.tensor([2.0]), torch.tensor([1.0])), torch.ones(1, 1, 1, 1)).item()
        3.0
    """
    values: Mapping[Hashable, Tensor] = {None: x} if isinstance(x, Tensor) else x
    start = (x if isinstance(x, Tensor) else torch.empty(0), rank)
    return _run(op, start, values)[0]


_State = tuple[Tensor, int]


@singledispatch
def _run(op: Operator, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    raise NotAffineError(f"{type(op).__name__} is not an operator that can be applied")


@_run.register
def _run_input(op: Input, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    return values[None] if None in values else values[op.key], state[1]


@_run.register
def _run_identity(op: Identity, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    return state


@_run.register
def _run_zero(op: Zero, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    return torch.zeros_like(state[0]), state[1]


@_run.register
def _run_affine(op: Affine, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    x, rank = state
    if op.scale is not None:
        x = x * _per_channel(op.scale, x, rank)
    return (x if op.shift is None else x + _per_channel(op.shift, x, rank)), rank


@_run.register
def _run_conv(op: Conv, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    x, rank = state[0], len(op.axes)
    weight, bias = op.weight.to(x.dtype), None if op.bias is None else op.bias.to(x.dtype)
    if rank == 0:
        matrix = _block_diagonal(weight, op.groups)
        return F.linear(x, matrix.T if op.transposed else matrix, bias), 0
    stride, dilation = [a.stride for a in op.axes], [a.dilation for a in op.axes]
    amounts = tuple((a.lo, a.hi) for a in op.axes)
    if op.transposed:
        y = _SCATTER[rank](x, weight, bias, stride, 0, 0, op.groups, dilation)
        if all(pair == (0, 0) for pair in amounts):
            return y, rank
        grown = pad(y, tuple((-lo, -hi) for lo, hi in amounts), "zeros", 0.0)
        return (grown if bias is None else _fill_border(grown, bias, amounts)), rank
    return _CONV[rank](
        pad(x, amounts, op.mode, 0.0), weight, bias, stride, 0, dilation, op.groups
    ), rank


@_run.register
def _run_pool(op: AvgPool, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    rank = len(op.axes)
    x = pad(state[0], tuple((a.lo, a.hi) for a in op.axes), "zeros", 0.0)
    kernel, stride = [a.kernel for a in op.axes], [a.stride for a in op.axes]
    count = 1
    for size in kernel:
        count *= size
    return _POOL[rank](x, kernel, stride) * (op.factor * count), rank


@_run.register
def _run_pad(op: Pad, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    return pad(state[0], op.amounts, op.mode, op.value), len(op.amounts)


@_run.register
def _run_select(op: Select, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    x, rank = state
    return x.index_select(x.ndim - 1 - rank, torch.tensor(op.index, device=x.device)), rank


@_run.register
def _run_resample(op: Resample, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    return op.function(state[0]), op.rank


@_run.register
def _run_flatten(op: Flatten, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    row = state[0].flatten(state[0].ndim - 1 - state[1])
    return row.reshape(*row.shape, *(1,) * op.rank), op.rank


@_run.register
def _run_unflatten(op: Unflatten, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    row = state[0].flatten(state[0].ndim - 1 - state[1])
    return row.unflatten(-1, (-1, *op.size)), len(op.size)


@_run.register
def _run_patches(op: Patches, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    rank = len(op.axes)
    x = pad(state[0], tuple((a.lo, a.hi) for a in op.axes), "zeros", 0.0)
    for at, axis in enumerate(op.axes):  # (N, C, *positions so far, *sizes to come, *taps so far)
        windows = x.unfold(2 + at, axis.span, axis.stride)
        x = windows[..., :: axis.dilation]
    taps = (1, *range(2 + rank, 2 + 2 * rank))
    turned = x.permute(0, *(taps[d] for d in op.order), *range(2, 2 + rank))
    return turned.flatten(1, 1 + rank), rank


@_run.register
def _run_sequence(op: Sequence, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    for part in op.parts:
        state = _run(part, state, values)
    return state


@_run.register
def _run_sum(op: Sum, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    results = [_run(part, state, values) for part in op.parts]
    total = results[0][0]
    for value, _ in results[1:]:
        total = total + value
    return total, results[0][1]


@_run.register
def _run_concat(op: Concat, state: _State, values: Mapping[Hashable, Tensor]) -> _State:
    results = [_run(part, state, values) for part in op.parts]
    first, rank = results[0]
    return torch.cat([value for value, _ in results], dim=first.ndim - 1 - rank), rank


def pad(x: Tensor, amounts: tuple[tuple[int, int], ...], mode: str, value: float) -> Tensor:
    """Return x with rings added (positive) or cropped (negative), amounts per axis in order."""
    flat = [amount for pair in reversed(amounts) for amount in pair]
    if not any(flat):
        return x
    return F.pad(x, flat, value=value) if mode == "zeros" else F.pad(x, flat, mode=mode)


def _per_channel(vector: Tensor, x: Tensor, rank: int) -> Tensor:
    vector = vector.to(x.dtype)
    return vector if vector.ndim == 0 else vector.reshape(-1, *(1,) * rank)


def _block_diagonal(weight: Tensor, groups: int) -> Tensor:
    return weight if groups == 1 else torch.block_diag(*weight.chunk(groups))


def _fill_border(y: Tensor, bias: Tensor, amounts: tuple[tuple[int, int], ...]) -> Tensor:
    """Give the positions that a negative crop added the bias, as torch's output_padding does."""
    inside = pad(torch.ones_like(y[:1, :1]), (), "zeros", 0.0)
    for axis, (lo, hi) in enumerate(amounts):
        size = y.shape[2 + axis]
        index = torch.arange(size, device=y.device)
        kept = (index >= max(0, -lo)) & (index < size - max(0, -hi))
        inside = inside * kept.to(y.dtype).reshape(-1, *(1,) * (len(amounts) - 1 - axis))
    return y + (1 - inside) * bias.reshape(-1, *(1,) * len(amounts))
