"""Channels that ride along: where they lie among a layer's own, and the wider convolution.

A slot is one channel of a widened value: a channel of the branch, a carried one, both (the value
that the branch starts from), or neither (a zero that only fills a group).

Source: RMNet, arXiv:2111.00687, section 3; carried channels inside groups are our own extension.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from refold.algebra.operator import Conv
from refold.errors import RefusedError

Slot = tuple[int, int]
"""Channel of the branch and carried channel; -1 for none."""
Slots = tuple[Slot, ...]
Parts = tuple[Slots, ...]
DEAD: Slot = (-1, -1)


@dataclass(frozen=True, eq=False)
class Carry:
    """What one convolution does to the carried channels.

    Args:
        taps: positions in its kernel, each with a factor for every channel or a matrix.
        channels: how many leave.
        bias: what is added to them.
    """

    taps: tuple[tuple[tuple[int, ...], float | Tensor], ...]
    channels: int
    bias: Tensor | None = None

    @property
    def mixes(self) -> bool:
        """Whether a carried channel becomes anything but its own multiple."""
        return any(isinstance(factor, Tensor) for _, factor in self.taps)


def both(channels: int, chosen: Iterable[int]) -> Slots:
    """Return the slots of a value that is the branch's and, in the chosen channels, carried too.

    Examples:
        >>> both(3, (2, 0))
        ((0, 1), (1, -1), (2, 0))
    """
    rides = {channel: place for place, channel in enumerate(chosen)}
    return tuple((i, rides.get(i, -1)) for i in range(channels))


def mains(channels: Iterable[int]) -> Slots:
    """Return slots of the branch's own channels."""
    return tuple((i, -1) for i in channels)


def carried(channels: Iterable[int]) -> Slots:
    """Return slots of carried channels."""
    return tuple((-1, i) for i in channels)


def wanted(op: Conv, channels: int, *, last: bool) -> Slots:
    """Return the order of channels that a convolution would like to read.

    Args:
        op: the convolution as it was.
        channels: how many are carried.
        last: whether it adds them to its own.

    Examples:
        >>> wanted(Conv(torch.ones(2, 1), groups=2), 2, last=True)
        ((0, -1), (-1, 0), (1, -1), (-1, 1))
    """
    own, made = op.in_channels // op.groups, op.out_channels // op.groups
    if last and op.groups > 1:
        rows = ((range(g * own, (g + 1) * own), range(g * made, (g + 1) * made))
                for g in range(op.groups))  # fmt: skip
        return tuple(slot for mine, other in rows for slot in (*mains(mine), *carried(other)))
    if op.groups == 1 or own == 1:
        return (*mains(range(op.in_channels)), *carried(range(channels)))
    width = min(own, made)
    slots = mains(range(op.in_channels))
    for start in range(0, channels, width):
        group = carried(range(start, min(start + width, channels)))
        slots += (*group, *(DEAD,) * (own - len(group)))
    return slots


def parts_of(op: Conv, slots: Slots, carry: Carry, after: Slots | None) -> tuple[Parts, Parts]:
    """Return what each group of a widened convolution reads and makes.

    Args:
        op: the convolution as it was.
        slots: what it reads now.
        carry: what it does to carried channels.
        after: the order that the next convolution wants, where this one is free to choose.

    Raises:
        RefusedError: when its groups cannot take carried channels in.
    """
    if op.groups == 1:
        row = (*mains(range(op.out_channels)), *carried(range(carry.channels)))
        return (slots,), (after or row,)
    if carry.mixes:
        raise RefusedError("its grouped convolution cannot apply the shortcut's projection")
    own, made = op.in_channels // op.groups, op.out_channels // op.groups
    if own == 1 and not any(main >= 0 and rides >= 0 for main, rides in slots):
        return tuple((slot,) for slot in slots), tuple(_depthwise(slot, made) for slot in slots)
    if slots[: op.in_channels] == mains(range(op.in_channels)):
        ins = _cut(slots, own)
        riding = [[r for _, r in part if r >= 0] for part in ins]
        if len(ins) * own == len(slots) and all(len(r) <= made for r in riding):
            own_outs = _cut(mains(range(op.out_channels)), made)
            extra = tuple(_filled(carried(r), made) for r in riding[op.groups :])
            return ins, (*own_outs, *extra)
    ins = _inside(op, slots)
    most = max(sum(rides >= 0 for _, rides in part) for part in ins)
    outs = tuple(
        (*mains(range(g * made, (g + 1) * made)),
         *_filled(carried(r for _, r in part if r >= 0), most))
        for g, part in enumerate(ins)
    )  # fmt: skip
    return ins, outs


def merging_parts(op: Conv, slots: Slots) -> tuple[Parts, Parts]:
    """Return the same for the convolution that adds what is carried to its own channels."""
    if op.groups == 1:
        return (slots,), (mains(range(op.out_channels)),)
    return _inside(op, slots), _cut(mains(range(op.out_channels)), op.out_channels // op.groups)


def _depthwise(slot: Slot, made: int) -> Slots:
    main, rides = slot
    if main >= 0:
        return mains(range(main * made, (main + 1) * made))
    return _filled(carried([rides] if rides >= 0 else []), made)


def _filled(slots: Slots, size: int) -> Slots:
    return (*slots, *(DEAD,) * (size - len(slots)))


def _cut(slots: Slots, size: int) -> Parts:
    return tuple(slots[i : i + size] for i in range(0, len(slots), size))


def _inside(op: Conv, slots: Slots) -> Parts:
    """Cut slots into the convolution's groups, each with its own channels and some carried."""
    own = op.in_channels // op.groups
    if len(slots) % op.groups == 0:
        ins = _cut(slots, len(slots) // op.groups)
        found = [sorted(main for main, _ in part if main >= 0) for part in ins]
        if found == [list(range(g * own, (g + 1) * own)) for g in range(op.groups)]:
            return ins
    raise RefusedError("its grouped convolution reads the carried channels in another order")


def widened(op: Conv, ins: Parts, outs: Parts, carry: Carry, *, merges: bool = False) -> Conv:
    """Return the convolution that computes its own channels and those that ride along.

    Args:
        op: the convolution as it was.
        ins: what each group reads.
        outs: what each group makes.
        carry: what becomes of the carried channels.
        merges: add them to its own channels instead of handing them on.

    Raises:
        RefusedError: when a group would need carried channels of another one.

    Examples:
        >>> conv = Conv(torch.full((1, 1), 5.0))
        >>> wide = widened(conv, (((0, 0),),), (((0, -1), (-1, 0)),), Carry((((), 1.0),), 1))
        >>> wide.weight.tolist()
        [[5.0], [1.0]]
    """
    source = op.weight.detach()
    rows = sum(len(part) for part in outs)
    weight = source.new_zeros(rows, len(ins[0]), *source.shape[2:])
    own, made = op.in_channels // op.groups, op.out_channels // op.groups
    at, to, row, column = _pairs(ins, outs, 0, 0)
    weight[at, to] = source[row, column - row // made * own]
    for tap, factor in carry.taps:
        _place(weight, ins, outs, tap, factor, target=0 if merges else 1)
    bias = _bias(op, outs, carry, merges)
    return Conv(weight, bias, op.axes, len(ins), op.mode)


Index = tuple[Tensor, Tensor, Tensor, Tensor]


def _index(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64, device="cpu")


def _pairs(ins: Parts, outs: Parts, made: int, read: int) -> Index:
    """Return where each pair of channels lies in the wide weight, and which pair it is."""
    if len(ins) == 1:
        rows = [(place, slot[made]) for place, slot in enumerate(outs[0]) if slot[made] >= 0]
        columns = [(place, slot[read]) for place, slot in enumerate(ins[0]) if slot[read] >= 0]
        first, second = _index(r[0] for r in rows)[:, None], _index(r[1] for r in rows)[:, None]
        return first, _index(c[0] for c in columns), second, _index(c[1] for c in columns)
    rows, columns = _table(outs)[..., made], _table(ins)[..., read]
    meets = (rows[:, :, None] >= 0) & (columns[:, None, :] >= 0)
    group, to, at = meets.nonzero(as_tuple=True)
    return group * rows.shape[1] + to, at, rows[group, to], columns[group, at]


def _table(parts: Parts) -> Tensor:
    """Return the slots as (groups, channels of a group, 2)."""
    return torch.tensor(parts, dtype=torch.int64, device="cpu")


def _place(
    weight: Tensor, ins: Parts, outs: Parts, tap: tuple[int, ...], factor: float | Tensor,
    *, target: int,
) -> None:  # fmt: skip
    if not isinstance(factor, Tensor):
        at, to = _own_places(ins, outs, target)
        weight[(at, to, *tap)] = factor
        return
    at, to, row, column = _pairs(ins, outs, target, 1)
    values = factor.to(weight)[row, column]
    if len(ins) > 1 and (
        factor.is_meta or int((values != 0).sum()) < int((factor != 0).sum())
    ):  # one group meets every pair
        raise RefusedError(_APART)
    weight[(at, to, *tap)] = values


def _own_places(ins: Parts, outs: Parts, target: int) -> tuple[Tensor, Tensor]:
    """Return where each carried channel meets the channel that it becomes, or is added to."""
    rows: list[int] = []
    columns: list[int] = []
    start = 0
    for part, result in zip(ins, outs, strict=True):
        places = {slot[1]: place for place, slot in enumerate(part)}
        wanted = {place: s[target] for place, s in enumerate(result, start) if s[target] >= 0}
        if not places.keys() >= set(wanted.values()):
            raise RefusedError(_APART)
        rows.extend(wanted)
        columns.extend(places[which] for which in wanted.values())
        start += len(result)
    return _index(rows), _index(columns)


_APART = "its groups would need carried channels of one another"


def _bias(op: Conv, outs: Parts, carry: Carry, merges: bool) -> Tensor | None:
    if op.bias is None and carry.bias is None:
        return None
    slots = [slot for part in outs for slot in part]
    total = op.weight.new_zeros(len(slots), dtype=torch.float64)
    for bias, kind in ((op.bias, 0), (carry.bias, 0 if merges else 1)):
        if bias is not None:
            places = [place for place, slot in enumerate(slots) if slot[kind] >= 0]
            total[places] += bias.detach().to(total)[[slots[p][kind] for p in places]]
    return total
