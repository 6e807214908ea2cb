"""Channel slices, permutations and concatenations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from refold.algebra.arithmetic import scatter_add, side_by_side
from refold.algebra.operator import (
    Affine,
    Concat,
    Conv,
    Identity,
    Input,
    Operator,
    Select,
    Sequence,
    chain,
    sequence,
    wide,
)
from refold.errors import GeometryError
from refold.rules.parallel import add_convs, branches_as_convs, common_axes, split_branch
from refold.rules.rule import Outcome, refuse, rule
from refold.rules.weights import as_conv, per_channel, regroup, turned


@rule("series", exact="always", source="an index of an index")
def merge_selects(op: Operator) -> Outcome:
    """Two channel choices in a row are one; the choice of everything in order is nothing."""
    match op:
        case Sequence((Select() as a, Select() as b)):
            return Select(tuple(a.index[i] for i in b.index), a.channels)
        case Sequence((Select() as select, other)) if select.is_identity:
            return other
        case Sequence((other, Select() as select)) if select.is_identity:
            return other
        case _:
            return None


@rule("series", exact="always", source="rows of W")
def fold_select_into_conv(op: Operator) -> Outcome:
    """A choice of a convolution's outputs is a choice of its rows."""
    match op:
        case Sequence((Conv() as conv, Select() as select)):
            return _rows(conv, select)
        case _:
            return None


@rule("series", exact="always", source="columns of W, zero where a channel is not read")
def fold_select_ahead_of_conv(op: Operator) -> Outcome:
    """A convolution of chosen channels is a convolution of all with zero columns."""
    match op:
        case Sequence((Select() as select, Conv() as conv)):
            return _columns(select, conv)
        case _:
            return None


@rule(
    "concat",
    exact="equal strides, output sizes and padding",
    source="DBB, arXiv:2103.13425, Transform IV",
)
def concat_branches(op: Operator) -> Outcome:
    """Branches on one input, side by side, are one convolution with their rows stacked."""
    if not isinstance(op, Concat):
        return None
    split = [split_branch(part) for part in op.parts]
    branches = [branch for branch in split if branch is not None]
    if len(branches) < len(op.parts) or len({s.key if s else None for s, _ in branches}) > 1:
        return None
    source, chains = branches[0][0], [rest for _, rest in branches]
    if not any(isinstance(leaf, Conv) for rest in chains for leaf in rest):
        return None
    convs = [turned(conv) for conv in branches_as_convs(chains, source)]
    if any(conv.transposed for conv in convs):
        return refuse("transposed convolutions side by side stay apart")
    merged = stack([replace(c, weight=regroup(c.weight, c.groups, 1), groups=1) for c in convs])
    return merged if source is None else sequence(source, merged)


@rule(
    "concat",
    exact="the slices split the input in order, with equal widths and windows",
    source="grouped convolution",
)
def concat_slices(op: Operator) -> Outcome:
    """Convolutions of consecutive slices, side by side, are one grouped convolution."""
    slices = _slices(op)
    if slices is None:
        return None
    source, picks, ops = slices
    if all(isinstance(leaf, (Affine, Identity)) for leaf in ops):
        merged = stack_affines([len(pick.index) for pick in picks], ops)
        return merged if source is None else sequence(source, merged)
    lead = next((leaf for leaf in ops if isinstance(leaf, Conv)), None)
    if lead is None:
        return None
    rank, device = len(lead.axes), lead.weight.device
    convs = [
        turned(as_conv(o, len(s.index), rank, device)) for o, s in zip(ops, picks, strict=True)
    ]
    if any(conv.transposed for conv in convs):
        return refuse("transposed convolutions side by side stay apart")
    widths = {(c.weight.shape[0] // c.groups, c.weight.shape[1]) for c in convs}
    if len(widths) > 1:
        return None
    merged = stack(convs, groups=sum(c.groups for c in convs))
    return merged if source is None else sequence(source, merged)


def _rows(conv: Conv, select: Select) -> Outcome:
    index = torch.tensor(select.index, device=conv.weight.device)
    bias = None if conv.bias is None else conv.bias.index_select(0, index)
    if conv.transposed:
        weight = regroup(conv.weight, conv.groups, 1).index_select(1, index)
        return replace(conv, weight=weight, bias=bias, groups=1)
    groups = _kept_groups(select.index, conv)
    if groups is not None:
        return replace(conv, weight=conv.weight.index_select(0, index), bias=bias, groups=groups)
    weight = regroup(conv.weight, conv.groups, 1).index_select(0, index)
    return replace(conv, weight=weight, bias=bias, groups=1)


def _kept_groups(index: tuple[int, ...], conv: Conv) -> int | None:
    """Return the groups when every group keeps equally many of its own outputs, in group order."""
    width = conv.out_channels // conv.groups
    owners = [i // width for i in index]
    each = len(index) // conv.groups
    whole = len(index) % conv.groups == 0
    return (
        conv.groups if whole and owners == [i // max(each, 1) for i in range(len(index))] else None
    )


def _columns(select: Select, conv: Conv) -> Conv:
    width = conv.in_channels // conv.groups
    if not conv.transposed and [i // width for i in select.index] == _owners(conv, select.channels):
        return _columns_within(select, conv, width)
    dense, axis = wide(regroup(conv.weight, conv.groups, 1)), 0 if conv.transposed else 1
    index = torch.tensor(select.index, device=dense.device)
    return replace(conv, weight=scatter_add(select.channels, axis, index, dense), groups=1)


def _owners(conv: Conv, channels: int) -> list[int]:
    """Return the group of each channel, when as many enter as the convolution reads."""
    width = conv.in_channels // conv.groups
    return [i // width for i in range(channels)] if channels == conv.in_channels else []


def _columns_within(select: Select, conv: Conv, width: int) -> Conv:
    """Return the convolution of channels that stay within their groups: it keeps its groups."""
    rows = wide(conv.weight).unflatten(0, (conv.groups, -1))
    index = torch.tensor(select.index, device=rows.device).unflatten(0, (conv.groups, width))
    found = [
        scatter_add(width, 1, order - group * width, part)
        for group, (part, order) in enumerate(zip(rows, index, strict=True))
    ]
    return replace(conv, weight=side_by_side(found))


def _slices(op: Operator) -> tuple[Input | None, list[Select], list[Operator]] | None:
    """Return source, slices and leaves of a concatenation of consecutive slices."""
    if not isinstance(op, Concat):
        return None
    sources: list[Input | None] = []
    picks: list[Select] = []
    ops: list[Operator] = []
    for part in op.parts:
        parts = list(chain(part))
        sources.append(parts.pop(0) if isinstance(parts[0], Input) else None)  # type: ignore[arg-type]
        if not parts or not isinstance(parts[0], Select) or len(parts) > 2:
            return None
        picks.append(parts[0])
        ops.append(parts[1] if len(parts) > 1 else Identity())
    read = [i for pick in picks for i in pick.index]
    if len({s.key if s else None for s in sources}) > 1 or read != list(range(picks[0].channels)):
        return None
    return (
        (sources[0], picks, ops)
        if all(isinstance(o, (Conv, Affine, Identity)) for o in ops)
        else None
    )


def slices(widths: Iterable[int]) -> list[Select]:
    """Return for values side by side which channels of the whole each of them is.

    Examples:
        >>> [pick.index for pick in slices([2, 1])]
        [(0, 1), (2,)]
    """
    ends = list(accumulate(widths, initial=0))
    return [Select(tuple(range(*span)), ends[-1]) for span in pairwise(ends)]


def stack(convs: list[Conv], groups: int = 1) -> Conv:
    """Return convolutions side by side as one, kernels placed in the window common to all.

    Raises:
        GeometryError: when their windows or their numbers of input channels do not fit.
    """
    axes, mode = common_axes(convs)
    if len({conv.weight.shape[1] for conv in convs}) > 1:
        raise GeometryError("branches read different numbers of channels")
    grown = [_grow(conv, convs) for conv in convs]
    weight = side_by_side([wide(conv.weight) for conv in grown])
    has_bias = any(conv.bias is not None for conv in convs)
    zeros = [
        weight.new_zeros(conv.out_channels) if conv.bias is None else wide(conv.bias)
        for conv in convs
    ]
    return Conv(weight, side_by_side(zeros) if has_bias else None, axes, groups, mode)


def _grow(conv: Conv, others: list[Conv]) -> Conv:
    """Place a kernel in the window common to all: add nothing of the others' geometry to it."""
    if all(other.axes == conv.axes for other in others):
        return conv
    rows, columns = conv.weight.shape[:2]
    shells = [
        Conv(
            conv.weight.new_zeros(rows, columns, *(axis.kernel for axis in other.axes)),
            None,
            other.axes,
            conv.groups,
            other.mode,
        )
        for other in others
    ]
    return add_convs([conv, *shells])


def stack_affines(sizes: list[int], ops: list[Operator]) -> Affine | Identity:
    """Return scales and shifts side by side as one; anything else stands for none.

    Args:
        sizes: how many channels each is for.
        ops: the operators.
    """
    affines = [op if isinstance(op, Affine) else Affine() for op in ops]
    scale = _row([affine.scale for affine in affines], sizes, 1.0)
    shift = _row([affine.shift for affine in affines], sizes, 0.0)
    return Identity() if scale is None and shift is None else Affine(scale, shift)


def _row(vectors: list[Tensor | None], sizes: list[int], default: float) -> Tensor | None:
    """Return the vectors in a row, the default where one is missing; None where all are."""
    known = [vector for vector in vectors if vector is not None]
    if not known:
        return None
    device = max(known, key=Tensor.dim).device
    fill = torch.full((), default)
    pairs = zip(vectors, sizes, strict=True)
    return side_by_side([per_channel(fill if v is None else v, n, device) for v, n in pairs])
