"""What a branch becomes when its shortcut rides along: wider layers, worked out before any edit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from refold.algebra.operator import Affine, AvgPool, Conv, Identity, Operator, points, sequence
from refold.errors import RefusedError
from refold.graph.activations import Activation, Limit
from refold.graph.branch import Link, Residual, flat, pools, sigmoids
from refold.graph.carry import ChannelClamp, ChannelSlope
from refold.graph.interval import Interval, point
from refold.graph.lift import Lifter
from refold.graph.lower import Like, like_of, lower
from refold.graph.ranges import Ranges, through
from refold.graph.reserve import (
    Carry,
    Slots,
    both,
    merging_parts,
    parts_of,
    wanted,
    widened,
)
from refold.graph.shortcut import Shortcut, carries, normal_form
from refold.rules.engine import simplify
from refold.rules.weights import as_conv

OPEN = 100.0
"""A gate's input for carried channels: its sigmoid is exactly 1 in every precision."""


@dataclass(frozen=True, eq=False)
class Change:
    """One edit of the branch.

    Args:
        node: the node that it is about; for "insert", the one that comes after.
        module: the new layer; None for a node that stays as it is.
        channels: of its value afterwards.
        kind: "keep" a node, "replace" it, or "insert" a layer before it.
        gate: edits of the gate, where the node multiplies by one.
    """

    node: fx.Node
    module: nn.Module | None
    channels: int
    kind: str = "keep"
    gate: tuple[Change, ...] = ()


@dataclass(eq=False)
class Stage:
    """One step of a branch in normal form: a convolution, a scale, a function or a gate."""

    step: Link | None
    op: Operator | None
    is_new: bool = False


@dataclass(eq=False)
class Planner:
    """Plans one residual.

    Args:
        lifter: the capture's lifter.
        ranges: its value ranges.
        residual: what to rewrite.
        grouped: add with one small group per channel where a layer must be appended to add.
    """

    lifter: Lifter
    ranges: Ranges
    residual: Residual
    grouped: bool
    changes: list[Change] = field(default_factory=list["Change"])

    def plan(self) -> list[Change]:
        """Return the edits in order.

        Raises:
            RefusedError: when the shortcut cannot ride along; nothing has been edited.
        """
        residual = self.residual
        shape = self.lifter.shapes[residual.source]
        self.rank = len(shape) - 2
        if self.rank < 1:
            raise RefusedError("it adds vectors, not maps")
        ops = [op for link in residual.shortcut for op in link.ops]
        short = normal_form([*ops, residual.scales[1]], shape[1], self.rank)
        stages = self._stages(short)
        convs = [stage for stage in stages if isinstance(stage.op, Conv)]
        self.like = self._like([cast(Conv, s.op) for s in convs], short)
        loads = carries(short, [cast(Conv, stage.op) for stage in convs])
        self._walk(stages, convs, loads, both(shape[1]))
        return self.changes

    # normal form

    def _stages(self, short: Shortcut) -> list[Stage]:
        """Return the branch with a convolution at either end."""
        found: list[Stage] = []
        for step, op in flat(self.residual.branch):
            if isinstance(op, AvgPool):
                op = as_conv(op, self.lifter.shapes[step.source][1], self.rank)
            if not isinstance(op, Identity) or len(step.ops) == 1:
                found.append(Stage(step, op))
        first = next((s for s in found if not isinstance(s.op, Identity)), found[0])
        channels = self.lifter.shapes[self.residual.source][1]
        if not isinstance(first.op, Conv):
            head: Operator = Affine() if not isinstance(first.op, Affine) else first.op
            found.insert(0, Stage(None, as_conv(head, channels, self.rank), is_new=True))
        found = self._scaled(found)
        last = cast(Any, found[-1].op)
        if not isinstance(last, Conv) or self._cannot_add(last, short) or len(found) < 2:
            width = self.lifter.shapes[self.residual.total][1]
            groups = width if self.grouped and short.keeps_channels else 1
            found.append(Stage(None, _unit(width, groups, self.rank), is_new=True))
        return found

    def _cannot_add(self, last: Conv, short: Shortcut) -> bool:
        return last.groups > 1 and not (self.grouped and short.keeps_channels)

    def _scaled(self, found: list[Stage]) -> list[Stage]:
        """Put a factor of the branch in the sum into its last convolution."""
        scale = self.residual.scales[0]
        if isinstance(scale, Identity):
            return found
        last = found[-1]
        if isinstance(last.op, Conv):
            folded = simplify(sequence(last.op, scale)).op
            if isinstance(folded, Conv):
                return [*found[:-1], replace_op(last, folded)]
        width = self.lifter.shapes[self.residual.total][1]
        return [*found, Stage(None, as_conv(scale, width, self.rank), is_new=True)]

    def _like(self, convs: list[Conv], short: Shortcut) -> Like:
        held = [op for op in (*convs, short.point, short.window) if isinstance(op, Conv)]
        stored = [op.weight for op in held if isinstance(op.weight, nn.Parameter)]
        return like_of(stored or [op.weight for op in held], self.rank)

    # the walk

    def _walk(
        self, stages: list[Stage], convs: list[Stage], loads: list[Carry], slots: Slots
    ) -> None:
        value = self.ranges.of(self.residual.source)
        taken = 0
        for place, stage in enumerate(stages):
            if isinstance(stage.op, Conv):
                last = taken == len(convs) - 1
                after = None if last else self._wanted(stages, place, loads, convs, taken + 1)
                slots = self._convolve(stage, loads[taken], slots, after, last=last)
                value = self._riding(loads[taken], stage.op, value)
                taken += 1
                continue
            step = cast(Link, stage.step)
            if isinstance(stage.op, Affine) and self._is_in_head(stages, place):
                self.changes.append(Change(step.node, None, len(slots), "drop"))
            elif isinstance(stage.op, Affine):
                self._replace(step, self._scale(stage.op, slots), len(slots))
            elif step.activation is not None:
                module = self._function(step.activation, slots, value)
                self._replace(step, module, len(slots))
            elif step.gate:
                gate = tuple(self._gate(step.gate, slots))
                self.changes.append(Change(step.node, None, len(slots), gate=gate))
            else:
                self.changes.append(Change(step.node, None, len(slots)))

    def _is_in_head(self, stages: list[Stage], place: int) -> bool:
        """Say whether a scale went into the layer that was put before it."""
        return place == 1 and stages[0].is_new

    def _wanted(
        self, stages: list[Stage], place: int, loads: list[Carry], convs: list[Stage], upcoming: int
    ) -> Slots:
        op = cast(Conv, convs[upcoming].op)
        last = upcoming == len(convs) - 1
        return wanted(op, loads[upcoming - 1].channels, last=last)

    def _convolve(
        self, stage: Stage, load: Carry, slots: Slots, after: Slots | None, *, last: bool
    ) -> Slots:
        op = cast(Conv, stage.op)
        ins, outs = merging_parts(op, slots) if last else parts_of(op, slots, load, after)
        module = lower(widened(op, ins, outs, load, merges=last), self.like)
        made = tuple(slot for part in outs for slot in part)
        if stage.step is not None:
            self._replace(stage.step, module, len(made))
        else:
            node = self.residual.total if last else self.residual.branch[0].node
            self.changes.append(Change(node, module, len(made), "insert"))
        return made

    def _replace(self, step: Link, module: nn.Module | None, channels: int) -> None:
        kind = "keep" if module is None else "replace"
        self.changes.append(Change(step.node, module, channels, kind))

    def _riding(self, load: Carry, op: Conv, value: Interval) -> Interval:
        """Return the range of the carried channels behind a convolution."""
        if load.mixes:
            return Interval()
        total = sum(cast(float, factor) for _, factor in load.taps)
        seen = value if not op.zero_pads or len(load.taps) == 1 else value.hull(point(0.0))
        return through(Affine(torch.tensor(total, dtype=torch.float64)), seen)

    def _scale(self, op: Affine, slots: Slots) -> nn.Module:
        conv = as_conv(op, 1 + max(main for main, _ in slots), self.rank)
        scale = torch.tensor([1.0] * len(slots), dtype=torch.float64, device=self.like.device)
        shift = torch.zeros_like(scale)
        places = [place for place, (main, _) in enumerate(slots) if main >= 0]
        order = [main for main, _ in slots if main >= 0]
        scale[places] = conv.weight.flatten().to(scale)[order]
        if conv.bias is not None:
            shift[places] = conv.bias.to(scale)[order]
        return lower(Affine(scale, shift), self.like)

    # functions

    def _function(self, act: Activation, slots: Slots, value: Interval) -> nn.Module | None:
        """Return the function for the wider value, None where it may stay as it is."""
        uniform = all(_is_uniform(limit) for limit in (*(act.bounds or ()), act.slope))
        if uniform and act.keeps is not None and value.lies_in(act.keeps):
            return None
        if act.bounds is not None:
            return self._clamp(act.bounds, slots)
        if act.slope is not None:
            return self._slopes(act.slope, slots)
        if act.keeps is not None:
            raise RefusedError(f"{act.name} changes negative values, and the shortcut may be negative")
        raise RefusedError(f"{act.name} changes whatever it reads, so that nothing can ride through it")

    def _clamp(self, bounds: tuple[Limit, Limit], slots: Slots) -> nn.Module:
        if bounds[0] == 0.0 and bounds[1] == inf:
            return ChannelSlope(self._vector(0.0, 1.0, slots))
        low, high = (self._vector(b, e, slots) for b, e in zip(bounds, (-inf, inf), strict=True))
        return ChannelClamp(low, high, self.rank)

    def _slopes(self, slope: Limit, slots: Slots) -> nn.Module:
        vector = self._vector(slope, 1.0, slots)
        if not isinstance(slope, Tensor):
            return ChannelSlope(vector)
        learned = nn.PReLU(len(slots), device=vector.device, dtype=vector.dtype)
        learned.weight = nn.Parameter(vector, requires_grad=self.like.requires_grad)
        return learned

    def _vector(self, limit: Limit, other: float, slots: Slots) -> Tensor:
        """Return a number per channel: the limit on the branch's own, else the other number."""
        options: Any = {"dtype": self.like.dtype, "device": self.like.device}
        vector = torch.full((len(slots),), other, **options)
        places = [place for place, (main, _) in enumerate(slots) if main >= 0]
        values = limit.flatten() if isinstance(limit, Tensor) else torch.tensor(limit)
        if values.numel() > 1:
            values = values[[main for main, _ in slots if main >= 0]]
        vector[places] = values.to(vector)
        return vector

    # gates

    def _gate(self, steps: tuple[Link, ...], slots: Slots) -> list[Change]:
        """Return the gate's edits: it reads its own channels, and gives 1 for those that ride."""
        places = [i for i, (step, op) in enumerate(flat(steps)) if isinstance(op, Conv)]
        items = flat(steps)
        if not places or not all(pools(step) for step, _ in items[: places[0]]):
            raise RefusedError("its gate has no layer in which channels that ride could be left out")
        tail = [step for step, op in items[places[-1] + 1 :] if not isinstance(op, Identity)]
        if not any(sigmoids(step) for step in tail[:1]) or not all(map(pools, tail[1:])):
            raise RefusedError("its gate does not end in a sigmoid, which is 1 for large numbers")
        found: list[Change] = []
        for i in (places[0],) if len(places) == 1 else (places[0], places[-1]):
            step, op = items[i]
            conv = cast(Conv, op)
            if len(step.ops) > 1 or conv.groups > 1 or conv.transposed or not _is_dense(conv):
                raise RefusedError("its gate is not made of dense layers")
            if i == places[0]:
                conv = _fewer_read(conv, slots)
            if i == places[-1]:
                conv = _open_rows(conv, slots)
            found.append(Change(step.node, lower(conv, self.like), conv.out_channels, "replace"))
        return found


def replace_op(stage: Stage, op: Operator) -> Stage:
    """Return the stage with another operator."""
    return replace(stage, op=op)


def _unit(channels: int, groups: int, rank: int) -> Conv:
    """Return the convolution that changes nothing, dense or with one group per channel."""
    if groups > 1:
        return as_conv(Identity(), channels, rank)
    eye = torch.eye(channels, dtype=torch.float64)
    return Conv(eye.reshape(channels, channels, *(1,) * rank), None, points(rank))


def _is_uniform(limit: Limit | None) -> bool:
    return not isinstance(limit, Tensor) or limit.numel() == 1


def _is_dense(conv: Conv) -> bool:
    return all(axis.is_point for axis in conv.axes)


def _fewer_read(conv: Conv, slots: Slots) -> Conv:
    """Return a gate's layer that reads the wider value and looks at the branch's channels only."""
    weight = conv.weight.detach()
    wide = weight.new_zeros(weight.shape[0], len(slots), *weight.shape[2:])
    places = [place for place, (main, _) in enumerate(slots) if main >= 0]
    wide[:, places] = weight[:, [main for main, _ in slots if main >= 0]]
    return replace(conv, weight=wide)


def _open_rows(conv: Conv, slots: Slots) -> Conv:
    """Return a gate's layer that also gives a number for every carried channel: always open."""
    weight = conv.weight.detach()
    wide = weight.new_zeros(len(slots), *weight.shape[1:])
    bias = weight.new_full((len(slots),), OPEN)
    places = [place for place, (main, _) in enumerate(slots) if main >= 0]
    order = [main for main, _ in slots if main >= 0]
    wide[places] = weight[order]
    bias[places] = 0.0 if conv.bias is None else conv.bias.detach()[order]
    return replace(conv, weight=wide, bias=bias)
