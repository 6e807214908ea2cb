"""What a branch becomes when its shortcut rides along: wider layers, worked out before any edit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch import fx, nn

from refold.algebra.operator import Affine, AvgPool, Conv, Identity, Operator, sequence
from refold.errors import RefusedError
from refold.graph.branch import Residual
from refold.graph.branch_links import Link, flat
from refold.graph.interval import UNKNOWN, Interval, point
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
from refold.graph.unbranch_function import wider_function
from refold.graph.unbranch_gate import wider_gate
from refold.rules.engine import simplify
from refold.rules.weights import as_conv, regroup

Kind = Literal["keep", "replace", "insert", "drop"]


@dataclass(frozen=True, eq=False)
class Change:
    """One edit of the branch.

    Args:
        node: the node that it is about; for "insert", the one that comes after.
        module: the new layer; None for a node that stays as it is.
        channels: of its value afterwards.
        kind: "keep" a node, "replace" it, "insert" a layer before it, or "drop" a node whose work
            an inserted layer does.
        gate: edits of the gate, where the node multiplies by one.
        readers: the nodes of that gate: they, too, read what the chain has come to.
    """

    node: fx.Node
    module: nn.Module | None
    channels: int
    kind: Kind = "keep"
    gate: tuple[Change, ...] = ()
    readers: tuple[fx.Node, ...] = ()


@dataclass(eq=False)
class Stage:
    """One step of a branch in normal form: a convolution, a scale, a function or a gate."""

    step: Link | None
    op: Operator | None
    is_absorbed: bool = False


@dataclass(eq=False)
class Planner:
    """Plans one residual.

    Args:
        lifter: the capture's lifter.
        ranges: its value ranges.
        residual: what to rewrite.
        grouped: add with one small group per channel where a layer must be appended to add.
        dense: give up the groups of the branch's convolutions.
    """

    lifter: Lifter
    ranges: Ranges
    residual: Residual
    grouped: bool = False
    dense: bool = False
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
        self._walk(stages, convs, loads, both(shape[1], short.chosen))
        return self.changes

    # normal form

    def _stages(self, short: Shortcut) -> list[Stage]:
        """Return the branch with a convolution at either end."""
        found: list[Stage] = []
        for step, op in flat(self.residual.branch):
            if isinstance(op, AvgPool):
                op = as_conv(op, self.lifter.shapes[step.source][1], self.rank)
            if isinstance(op, Conv) and self.dense:
                op = replace(op, weight=regroup(op.weight, op.groups, 1), groups=1)
            found.append(Stage(step, op))
        first = next((s for s in found if not isinstance(s.op, Identity)), found[0])
        channels = self.lifter.shapes[self.residual.source][1]
        if not isinstance(first.op, Conv):
            first.is_absorbed = isinstance(first.op, Affine)
            head = first.op if isinstance(first.op, Affine) else Identity()
            found.insert(0, Stage(None, as_conv(head, channels, self.rank)))
        end = max(i for i, stage in enumerate(found) if not isinstance(stage.op, Identity))
        last, scale = found[end], self.residual.scales[0]
        folded = simplify(sequence(last.op, scale)).op if isinstance(last.op, Conv) else None
        if not isinstance(folded, Conv) or self._cannot_add(folded, short) or not end:
            return [*found, self._adding(scale, short)]
        return [*found[:end], Stage(last.step, folded), *found[end + 1 :]]

    def _adding(self, scale: Operator, short: Shortcut) -> Stage:
        """Return a layer that only adds: dense, or with one small group per channel."""
        width = self.lifter.shapes[self.residual.total][1]
        op = as_conv(scale, width, self.rank)
        if not (self.grouped and short.keeps_channels):
            op = replace(op, weight=regroup(op.weight, op.groups, 1), groups=1)
        return Stage(None, op)

    def _cannot_add(self, last: Conv, short: Shortcut) -> bool:
        return last.groups > 1 and not (self.grouped and short.keeps_channels)

    def _like(self, convs: list[Conv], short: Shortcut) -> Like:
        held = [op for op in (*convs, short.point, short.window) if isinstance(op, Conv)]
        tensors = [op.weight for op in held]
        stored = [weight for weight in tensors if isinstance(weight, nn.Parameter)]
        return like_of([*stored] or tensors, self.rank)

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
            self._step(stage, slots, value)

    def _step(self, stage: Stage, slots: Slots, riding: Interval) -> None:
        """Plan a step that keeps the channels where they are."""
        step, count = cast(Link, stage.step), len(slots)
        if stage.is_absorbed:
            self.changes.append(Change(step.node, None, count, "drop"))
        elif isinstance(stage.op, Affine):
            self._replace(step, self._scale(stage.op, slots), count)
        elif step.activation is not None:
            module = wider_function(step.activation, slots, riding, self.like)
            self._replace(step, module, count)
        elif step.gate:
            is_first = step.source is self.residual.source
            layers = wider_gate(step.gate, slots, self.like, is_first=is_first)
            gate = tuple(Change(inner.node, layer, 0, "replace") for inner, layer in layers)
            self.changes.append(Change(step.node, None, count, "keep", gate, step.passed))
        else:
            self.changes.append(Change(step.node, None, count))

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
            is_head = not self.changes
            node = self.residual.branch[0].node if is_head else self.residual.total
            self.changes.append(Change(node, module, len(made), "insert"))
        return made

    def _replace(self, step: Link, module: nn.Module | None, channels: int) -> None:
        kind: Kind = "keep" if module is None else "replace"
        self.changes.append(Change(step.node, module, channels, kind))

    def _riding(self, load: Carry, op: Conv, value: Interval) -> Interval:
        """Return the range of the carried channels behind a convolution."""
        if load.mixes:
            return UNKNOWN
        total = sum(cast(float, factor) for _, factor in load.taps)
        seen = value if not op.zero_pads or len(load.taps) == 1 else value.hull(point(0.0))
        return through(Affine(torch.tensor(total, dtype=torch.float64, device="cpu")), seen)

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
