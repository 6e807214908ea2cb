"""Branches that start from one value and are added."""

from __future__ import annotations

from functools import reduce
from math import gcd

import torch
from torch import Tensor

from refold.algebra.arithmetic import plus
from refold.algebra.geometry import Axes, placement, union
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Conv,
    Identity,
    Input,
    Operator,
    Pad,
    Select,
    Sum,
    Zero,
    add,
    chain,
    sequence,
    wide,
)
from refold.errors import GeometryError
from refold.rules.rule import Outcome, rule
from refold.rules.series import chain_as_conv
from refold.rules.weights import add_blocks, channels_into, device_of, rank_of, turned

_Branch = tuple[Input | None, tuple[Operator, ...]]


@rule("parallel", exact="always", source="x + 0 = x", is_free=True)
def drop_zero_branches(op: Operator) -> Outcome:
    """A branch of zeros adds nothing."""
    if not isinstance(op, Sum):
        return None
    kept = [part for part in op.parts if not isinstance(chain(part)[-1], Zero)]
    if len(kept) == len(op.parts):
        return None
    return add(*kept) if kept else op.parts[0]


@rule(
    "parallel",
    exact="equal strides and output sizes, and padding of one kind",
    source="ACNet, arXiv:1908.03930, section 3.2; DBB, arXiv:2103.13425, Transforms II and VI",
    by_channel=True,
)
def add_branches(op: Operator) -> Outcome:
    """Convolutions, identities, scales and average pools on one value are one: a 1×1 in a k×k."""
    if not isinstance(op, Sum):
        return None
    split = [split_branch(part) for part in op.parts]
    if any(branch is None for branch in split):
        return None
    branches = [branch for branch in split if branch is not None]
    if len({source.key if source else None for source, _ in branches}) > 1:
        return None
    source, chains = branches[0][0], [rest for _, rest in branches]
    if all(len(rest) == 1 and isinstance(rest[0], (Identity, Affine)) for rest in chains):
        merged = _add_affines([rest[0] for rest in chains])
    else:
        merged = _add_convs(chains, source)
    return merged if source is None else sequence(source, merged)


def summands(op: Operator) -> tuple[Operator, ...]:
    """Return the branches of a sum, and of the sums within it; anything else by itself."""
    return tuple(b for p in op.parts for b in summands(p)) if isinstance(op, Sum) else (op,)


def split_branch(op: Operator) -> _Branch | None:
    """Return a branch's source and its convolution-like leaves; None when it holds others."""
    parts = chain(op)
    source = parts[0] if isinstance(parts[0], Input) else None
    rest = (parts[1:] if source is not None else parts) or (Identity(),)
    kernels = (Conv, Affine, Identity, AvgPool, Pad, Select)
    return (source, rest) if all(isinstance(leaf, kernels) for leaf in rest) else None


def branches_as_convs(chains: list[tuple[Operator, ...]], source: Input | None) -> list[Conv]:
    """Return branches on one value as convolutions, the channels known from whichever tells.

    Raises:
        GeometryError: when none tells, or a branch is not one convolution.
    """
    leaves = tuple(leaf for rest in chains for leaf in rest)
    heads = (channels_into(op) for op in (*(rest[0] for rest in chains), source or Identity()))
    channels = next((n for n in heads if n is not None), None)
    device = device_of(leaves)
    if device is None:
        raise GeometryError("no branch holds a weight: pools and slices alone make no convolution")
    return [chain_as_conv(rest, channels, rank_of(leaves), device) for rest in chains]


def _add_affines(ops: list[Operator]) -> Operator:
    """Return a x + s x + t x ... as one scale and shift."""
    affines = [op if isinstance(op, Affine) else Affine() for op in ops]
    device = device_of(affines)
    one = torch.ones((), dtype=torch.float64, device=device)
    scales = [one if op.scale is None else wide(op.scale).to(device) for op in affines]
    shifts = [wide(op.shift).to(device) for op in affines if op.shift is not None]
    return Affine(plus(*scales), plus(*shifts) if shifts else None)


def _add_convs(chains: list[tuple[Operator, ...]], source: Input | None) -> Conv:
    convs = branches_as_convs(chains, source)
    outputs = {conv.out_channels for conv in convs}
    keeps = any(not isinstance(leaf, Conv) for rest in chains for leaf in rest)
    if keeps and len(outputs) > 1:
        raise GeometryError(
            "an identity, scale or pooling branch needs equal channels, got "
            f"{convs[0].in_channels} in and {sorted(outputs)} out"
        )
    return add_convs(convs, any(conv.transposed and not conv.is_pointwise for conv in convs))


def add_convs(convs: list[Conv], transposed: bool = False) -> Conv:
    """Return the sum of convolutions as one: kernels placed in the union of their taps.

    Raises:
        GeometryError: with the reason why the kernels do not add.
    """
    convs = [turned(conv, transposed) for conv in convs]
    axes, mode = common_axes(convs, transposed)
    sizes = {(conv.in_channels, conv.out_channels) for conv in convs}
    if len(sizes) > 1:
        raise GeometryError(f"branches have different channels (in, out): {sorted(sizes)}")
    groups = reduce(gcd, [conv.groups for conv in convs])
    whole = [i for i, conv in enumerate(convs) if conv.axes == axes and conv.groups == groups][:1]
    weight = (
        convs[whole[0]].weight.to(torch.float64, copy=True)
        if whole
        else _zeros(convs, axes, groups)
    )
    for i, conv in enumerate(convs):
        if i not in whole:
            add_blocks(weight[taps_within(conv.axes, axes)], conv.weight, conv.groups, groups)
    biases = [wide(conv.bias) for conv in convs if conv.bias is not None]
    bias = plus(*biases) if biases else None
    return Conv(weight, bias, axes, groups, mode, transposed)


def common_axes(convs: list[Conv], transposed: bool = False) -> tuple[Axes, str]:
    """Return the window and padding mode that hold all the convolutions' taps.

    Raises:
        GeometryError: when strides, output sizes, padding modes or directions differ.
    """
    if len({len(conv.axes) for conv in convs}) > 1:
        raise GeometryError("branches have different numbers of spatial axes")
    if any(conv.transposed != transposed and not conv.is_pointwise for conv in convs):
        raise GeometryError("a transposed convolution does not add to an ordinary one")
    modes = {conv.mode for conv in convs if any(axis.pads for axis in conv.axes)}
    if len(modes) > 1:
        raise GeometryError(f"branches pad differently: {sorted(modes)}")
    axes = tuple(union(list(column)) for column in zip(*(conv.axes for conv in convs), strict=True))
    return axes, modes.pop() if modes else "zeros"


def _zeros(convs: list[Conv], axes: Axes, groups: int) -> Tensor:
    first = convs[0].weight
    columns = first.shape[1] * convs[0].groups // groups
    kernel = tuple(axis.kernel for axis in axes)
    return torch.zeros(first.shape[0], columns, *kernel, dtype=torch.float64, device=first.device)


def taps_within(part: Axes, whole: Axes) -> tuple[slice, ...]:
    """Return where a kernel lies in a weight whose window holds it."""
    return (slice(None), slice(None), *(placement(p, w) for p, w in zip(part, whole, strict=True)))
