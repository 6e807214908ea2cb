"""What a branch becomes when its shortcut rides along: wider layers, planned before any edit.

Gates (squeeze and excite) are open for the channels that ride and unchanged for the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch import fx, nn

from refold.algebra.operator import Affine, AvgPool, Conv, Identity, Operator, Resample, sequence
from refold.engine.simplify import simplify
from refold.errors import RefusedError
from refold.graph import (
    UNKNOWN,
    Interval,
    Lifter,
    Like,
    Link,
    Ranges,
    canonical,
    flat,
    like_of,
    lower,
    passed_on,
    point,
    pools,
    through,
)
from refold.residuals.find import Residual
from refold.residuals.functions import wider_function
from refold.residuals.reserve import Carry, Slots, both, merging_parts, parts_of, wanted, widened
from refold.residuals.shortcut import Shortcut, carries, normal_form
from refold.rules.weights import as_conv, regroup

OPEN = 100.0
"""A gate's input for carried channels: its sigmoid is exactly 1 in every precision."""


def wider_gate(
    steps: tuple[Link, ...], slots: Slots, like: Like, *, is_first: bool
) -> list[tuple[Link, nn.Module]]:
    """Return the new layers of a gate that reads and gates channels which ride along.

    Args:
        steps: from the gated value to the factor.
        slots: the channels of that value.
        like: precision and device.
        is_first: whether the gated value is the one that the block starts from.

    Raises:
        RefusedError: when the gate is of another kind.
    """
    items = flat(steps)
    places = [place for place, (_, op) in enumerate(items) if isinstance(op, Conv)]
    if not places or not all(pools(step) for step, _ in items[: places[0]]):
        raise RefusedError("its gate has no layer that could skip the carried channels")
    tail = [step for step, op in items[places[-1] + 1 :] if not isinstance(op, Identity)]
    if passed_on(list(dict.fromkeys(tail)), OPEN) != 1:
        raise RefusedError("its gate does not end in a function that is 1 for large numbers")
    for step, op in items:
        _check_reshape(step, op, is_first)
    layers: list[tuple[Link, nn.Module]] = []
    for place in sorted({places[0], places[-1]}):
        step, op = items[place]
        conv = _dense(step, op)
        if place == places[0]:
            conv = _blind(conv, slots)
        if place == places[-1]:
            conv = _open(conv, slots)
        layers.append((step, lower(conv, like)))
    return layers


def _check_reshape(step: Link, op: Operator | None, is_first: bool) -> None:
    """Refuse a reshape that states the number of channels, which is about to change."""
    if not isinstance(op, Resample) or not op.counted:
        return
    call = canonical(step.node)
    sizes = call.arguments.get("shape") if call is not None else None
    stated = not isinstance(sizes, (tuple, list)) or isinstance(sizes[1], int)
    if stated or is_first:
        raise RefusedError("its gate reshapes to a fixed number of channels")


def _dense(step: Link, op: Operator | None) -> Conv:
    single = len(step.ops) == 1
    if isinstance(op, Conv) and op.groups == 1 and not op.transposed and op.is_pointwise and single:
        return op
    raise RefusedError("its gate is not made of dense layers")


def _blind(conv: Conv, slots: Slots) -> Conv:
    """Return a gate's layer that reads the wider value and looks at the branch's channels only."""
    weight = conv.weight.detach()
    wide = weight.new_zeros(weight.shape[0], len(slots), *weight.shape[2:])
    places, order = _own(slots)
    wide[:, places] = weight[:, order]
    return replace(conv, weight=wide)


def _open(conv: Conv, slots: Slots) -> Conv:
    """Return a gate's layer that also gives a number for every carried channel: always open."""
    weight = conv.weight.detach()
    wide = weight.new_zeros(len(slots), *weight.shape[1:])
    bias = weight.new_full((len(slots),), OPEN)
    places, order = _own(slots)
    wide[places] = weight[order]
    bias[places] = 0.0 if conv.bias is None else conv.bias.detach()[order]
    return replace(conv, weight=wide, bias=bias)


def _own(slots: Slots) -> tuple[list[int], list[int]]:
    """Return where the branch's own channels lie, and which they are."""
    places = [place for place, (main, _) in enumerate(slots) if main >= 0]
    return places, [slots[place][0] for place in places]


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
        readers: the nodes of that gate: they also read the value at the end of the chain.
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
