"""Operators that may change places, so that a scale can reach a layer that takes it in.

A swap alone gains nothing: the engine moves one operator along the chain and keeps the move only
where a fold follows.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch

from refold.algebra.operator import (
    Affine,
    AvgPool,
    Conv,
    Flatten,
    Operator,
    Pad,
    Patches,
    Resample,
    Select,
    Sequence,
)
from refold.algebra.row import Unflatten
from refold.errors import GeometryError
from refold.rules.rule import Outcome, refuse, rule
from refold.rules.weights import with_rank


@rule(
    "commute",
    exact="no shift meets counted border zeros",
    source="a mean of s x + t is s mean(x) + t",
)
def pass_affine_forward(op: Operator) -> Outcome:
    """Scale and shift after a map of positions or channels instead of before it."""
    match op:
        case Sequence((Affine() as affine, Resample() as other)):
            return Sequence((other, affine))
        case Sequence((Affine() as affine, (AvgPool() | Pad()) as other)):
            return _refuse_border(affine, other) or Sequence((other, affine))
        case Sequence((Affine() as affine, Select() as select)):
            return Sequence((select, _pick(affine, select.index)))
        case Sequence((Affine() as affine, Flatten() as flatten)):
            return Sequence((flatten, _repeat(affine, flatten.positions)))
        case Sequence((Affine() as affine, Patches() as patches)):
            return _refuse_zeros(affine, patches) or Sequence((patches, _spread(affine, patches)))
        case Sequence((Affine() as affine, Unflatten() as row)) if affine.channels is None:
            return Sequence((row, affine))
        case _:
            return None


@rule(
    "commute",
    exact="no shift meets counted border zeros",
    source="a mean of s x + t is s mean(x) + t",
    is_backward=True,
)
def pass_affine_backward(op: Operator) -> Outcome:
    """Scale and shift before a map of positions or channels instead of after it."""
    match op:
        case Sequence((Resample() as other, Affine() as affine)):
            return Sequence((affine, other))
        case Sequence(((AvgPool() | Pad()) as other, Affine() as affine)):
            return _refuse_border(affine, other) or Sequence((affine, other))
        case Sequence((Select() as select, Affine() as affine)):
            order = _inverse(select)
            return None if order is None else Sequence((_pick(affine, order), select))
        case Sequence((Flatten() as flatten, Affine() as affine)) if affine.channels is None:
            return Sequence((affine, flatten))
        case Sequence((Patches() as patches, Affine() as affine)) if affine.channels is None:
            return _refuse_zeros(affine, patches) or Sequence((affine, patches))
        case Sequence((Unflatten() as row, Affine() as affine)):
            return Sequence((_repeat(affine, prod(row.size)), row))
        case _:
            return None


@rule(
    "commute", exact="no bias meets counted border zeros", source="channels and positions commute"
)
def pass_pointwise_forward(op: Operator) -> Outcome:
    """Mix channels after a map of positions instead of before it."""
    match op:
        case Sequence((Conv() as conv, Resample() as other)) if conv.is_pointwise:
            return _refuse_count(conv, other) or Sequence((other, _moved(conv, other.rank)))
        case Sequence((Conv() as conv, (AvgPool() | Pad()) as other)) if conv.is_pointwise:
            return _refuse_border(conv, other) or Sequence((other, conv))
        case _:
            return None


@rule(
    "commute",
    exact="no bias meets counted border zeros",
    source="channels and positions commute",
    is_backward=True,
)
def pass_pointwise_backward(op: Operator) -> Outcome:
    """Mix channels before a map of positions instead of after it."""
    match op:
        case Sequence((Resample() as other, Conv() as conv)) if conv.is_pointwise:
            moved = Sequence((_moved(conv, other.source_rank), other))
            return _refuse_count(conv, other) or moved
        case Sequence(((AvgPool() | Pad()) as other, Conv() as conv)) if conv.is_pointwise:
            return _refuse_border(conv, other) or Sequence((conv, other))
        case _:
            return None


@rule("commute", exact="always", source="channels and positions commute")
def pass_select_forward(op: Operator) -> Outcome:
    """Reorder channels after a layer that keeps them apart instead of before it."""
    match op:
        case Sequence((Select() as select, Conv() as conv)) if _is_apart(conv):
            order = _inverse(select)
            return None if order is None else Sequence((_reordered(conv, order), select))
        case Sequence((Select() as select, (AvgPool() | Pad()) as other)):
            return None if _inverse(select) is None else Sequence((other, select))
        case _:
            return None


@rule("commute", exact="always", source="channels and positions commute", is_backward=True)
def pass_select_backward(op: Operator) -> Outcome:
    """Choose channels before a layer that keeps them apart instead of after it."""
    match op:
        case Sequence((Conv() as conv, Select() as select)) if _is_apart(conv):
            return Sequence((select, _reordered(conv, select.index)))
        case Sequence(((AvgPool() | Pad()) as other, Select() as select)):
            return Sequence((select, other))
        case _:
            return None


def _is_apart(conv: Conv) -> bool:
    """Whether each channel has a kernel of its own: a depthwise convolution."""
    return not conv.transposed and conv.groups == conv.in_channels == conv.out_channels > 1


def _reordered(conv: Conv, order: tuple[int, ...]) -> Conv:
    index = torch.tensor(order, device=conv.weight.device)
    bias = None if conv.bias is None else conv.bias.index_select(0, index)
    weight = conv.weight.index_select(0, index)
    return replace(conv, weight=weight, bias=bias, groups=len(order))


def _refuse_count(conv: Conv, other: Resample) -> Outcome:
    if other.counted and conv.in_channels != conv.out_channels:
        return refuse("a reshape in between states the number of channels")
    return None


def _refuse_border(op: Affine | Conv, other: AvgPool | Pad) -> Outcome:
    constant = op.shift if isinstance(op, Affine) else op.bias
    if constant is None:
        return refuse("the ring's constant would be scaled") if _is_filled(other) else None
    if isinstance(other, AvgPool):
        uneven = other.zero_pads or other.divisor is not None
        return refuse("a constant meets the border zeros that the pool counts") if uneven else None
    if other.mode == "zeros" and other.grows:
        return refuse("a constant meets zero padding")
    return None


def _refuse_zeros(affine: Affine, patches: Patches) -> Outcome:
    meets = affine.shift is not None and patches.zero_pads
    return refuse("a constant meets the zeros in windows at the border") if meets else None


def _is_filled(other: AvgPool | Pad) -> bool:
    return isinstance(other, Pad) and other.value != 0 and other.grows


def _pick(affine: Affine, index: tuple[int, ...]) -> Affine:
    order = torch.tensor(index)
    return affine.each(lambda vector: vector.index_select(0, order.to(vector.device)))


def _repeat(affine: Affine, positions: int) -> Affine:
    return affine.each(lambda vector: vector.repeat_interleave(positions))


def _spread(affine: Affine, patches: Patches) -> Affine:
    """Return a scale and shift of channels as one of all their taps."""
    taps = patches.kernel
    places = [d - 1 for d in patches.order if d > 0]
    before = prod(taps[d] for d in places[: patches.order.index(0)])
    after = prod(taps) // before
    return affine.each(lambda vector: vector.repeat_interleave(after).repeat(before))


def _inverse(select: Select) -> tuple[int, ...] | None:
    if sorted(select.index) != list(range(select.channels)):
        return None
    order = [0] * select.channels
    for target, source in enumerate(select.index):
        order[source] = target
    return tuple(order)


def _moved(conv: Conv, rank: int) -> Conv:
    """Return a pointwise convolution as it stands where maps have another rank.

    Raises:
        GeometryError: when it would be a grouped matrix there, which no layer is.
    """
    if rank == 0 and conv.axes and conv.groups > 1:
        raise GeometryError("a grouped pointwise convolution has no plain linear form")
    return with_rank(conv, rank)
