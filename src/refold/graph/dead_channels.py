"""Drop channels that are constant: rows of zeros, and whatever only read them.

A convolution's channel whose weights are all zero is its bias everywhere. Functions and pools turn
that into another constant; what reads it next gives it a constant share. Where that constant is 0,
or the reader pads nothing, the share goes into the reader's bias and the channel is gone. Where the
reader pads with zeros the share is smaller at the borders, and the channel stays.

Source: network slimming, arXiv:1708.06519; the rule for constants is our own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import cast

import torch
from torch import Tensor, fx, nn

from refold.algebra.cost import parameters
from refold.algebra.operator import AvgPool, Conv, Identity, Resample, wide
from refold.errors import RefusedError
from refold.graph.activations import Activation, Limit
from refold.graph.branch_links import Link, link
from refold.graph.frames import frame_of
from refold.graph.interval import point
from refold.graph.lift import Lifter
from refold.graph.lower import like_of, lower
from refold.graph.paths import submodule
from refold.graph.record import Fold, Kept
from refold.graph.surgery import Editor
from refold.graph.unbranch_function import sliced_function


@dataclass(frozen=True, eq=False)
class Span:
    """A convolution, the steps behind it that keep channels apart, and the layer that reads them.

    Args:
        maker: the convolution whose rows may go.
        steps: what its channels pass, each by itself.
        reader: the dense layer behind them.
    """

    maker: Link
    steps: tuple[Link, ...]
    reader: Link


class DeadChannelPass:
    """Drops dead channels of one capture, from the input on.

    Args:
        lifter: lifts the capture's nodes.
        editor: edits its graph.
    """

    def __init__(self, lifter: Lifter, editor: Editor) -> None:
        self.lifter, self.editor = lifter, editor
        self.folds: list[Fold] = []
        self.kept: list[Kept] = []

    def run(self) -> None:
        """Drop what can go; note the reason for every layer that keeps a dead channel."""
        done = -1
        while done < len(self.folds):  # what is gone may leave channels before it unread
            done = len(self.folds)
            self.kept.clear()
            for node in list(self.lifter.capture.graph.nodes):
                maker = self._maker(node)
                if maker is not None:
                    self._try(maker)

    def _try(self, maker: Link) -> None:
        try:
            self._drop(self._span(maker))
        except RefusedError as error:
            if _constants(cast(Conv, maker.ops[0])):
                self.kept.append(Kept(self._path(maker.node), str(error)))

    def _path(self, node: fx.Node) -> str:
        capture = self.lifter.capture
        return capture.full(str(node.target) if node.op == "call_module" else frame_of(node).path)

    def _maker(self, node: fx.Node) -> Link | None:
        found = link(self.lifter, node)
        if not isinstance(found, Link) or len(found.ops) != 1 or node.op != "call_module":
            return None
        op = found.ops[0]
        return found if isinstance(op, Conv) and op.groups == 1 and not op.transposed else None

    def _span(self, maker: Link) -> Span:
        """Follow a convolution's channels to the one layer that reads them.

        Raises:
            RefusedError: when they lead elsewhere.
        """
        steps: list[Link] = []
        node = maker.node
        while True:
            readers = [user for user in node.users if self.lifter.depends(user)]
            if len(readers) != 1 or len(readers) < len(node.users):
                raise RefusedError("more than one layer reads its channels, or asks their number")
            found = self._passed(readers[0]) or link(self.lifter, readers[0])
            if not isinstance(found, Link) or found.gate or found.source is not node:
                raise RefusedError("what reads its channels does not keep them apart")
            if found.is_affine and isinstance(found.ops[0], Conv) and _reads_all(found):
                return Span(maker, tuple(steps), found)
            self._check(found)
            steps.append(found)
            node = found.node

    def _check(self, step: Link) -> None:
        op = step.ops[0] if len(step.ops) == 1 else None
        if step.activation is not None:
            calls = self.lifter.capture.calls.get(str(step.node.target), 1)
            if calls > 1 and _limits(step.activation):
                raise RefusedError("the function behind it is called more than once")
            return
        if isinstance(op, Conv):
            if not (op.groups == op.in_channels == op.out_channels and not op.transposed):
                raise RefusedError("the grouped convolution behind it does not keep channels apart")
            if step.node.op != "call_module":
                raise RefusedError("the convolution behind it is no layer of its own")
            return
        if (isinstance(op, Resample) and op.counted) or not isinstance(
            op, (AvgPool, Identity, Resample)
        ):
            raise RefusedError("what is behind it does not keep channels apart")

    def _passed(self, node: fx.Node) -> Link | None:
        """Return a max pool as a step: it keeps constants."""
        if node.op != "call_module" or str(node.target) in self.lifter.capture.pinned:
            return None
        pool = submodule(self.lifter.capture.module, str(node.target))
        if type(pool) in _MAX_POOLS and not getattr(pool, "return_indices", False):
            return Link(node, cast(fx.Node, node.args[0]), (Identity(),))
        return None

    # dropping

    def _drop(self, span: Span) -> None:
        made, read = cast(Conv, span.maker.ops[0]), cast(Conv, span.reader.ops[0])
        constant = {
            c: value
            for c in range(made.out_channels)
            if (value := self._value(span, c)) is not None
        }
        unread = (read.weight.detach().transpose(0, 1).flatten(1) == 0).all(1)
        lost = {c: v for c, v in constant.items() if v == 0 or not read.zero_pads}
        stays = set(constant) - set(lost) - set(unread.nonzero().flatten().tolist())
        lost |= dict.fromkeys(unread.nonzero().flatten().tolist(), 0.0)
        if len(lost) == made.out_channels:
            lost.pop(min(lost))  # a layer is never emptied
        if stays:
            reason = f"{len(stays)} channels are constant but not 0, and the next layer pads with 0"
            self.kept.append(Kept(self._path(span.maker.node), reason))
        if not lost:
            return
        keep = [c for c in range(made.out_channels) if c not in lost]
        rows = torch.tensor(keep, device=made.weight.device)
        changes: list[tuple[Link, Conv]] = [(span.maker, _rows(made, rows))]
        for step in span.steps:
            if step.ops and isinstance(step.ops[0], Conv):
                changes.append((step, _rows(step.ops[0], rows, len(keep))))
        changes.append((span.reader, _columns(read, rows, lost)))
        self._write(span, changes)
        self._slice_functions(span, keep)

    def _write(self, span: Span, changes: list[tuple[Link, Conv]]) -> None:
        ready = [(step.node, self._lowered(step, op)) for step, op in changes]
        before = sum(parameters(step.ops[0]) for step, _ in changes)
        for node, module in ready:
            self.editor.replace_module(node, module)
        after = sum(parameters(op) for _, op in changes)
        count = cast(Conv, span.maker.ops[0]).out_channels - changes[0][1].out_channels
        where = self._path(span.maker.node)
        self.folds.append(Fold(where, "dead channels", f"{count} channels", before, after))

    def _slice_functions(self, span: Span, keep: list[int]) -> None:
        """Give functions with a number per channel those of the channels that are left."""
        value = span.maker.node
        for step in span.steps:
            if step.activation is not None and _limits(step.activation):
                slots = tuple((channel, -1) for channel in keep)
                rank = len(self.lifter.shapes[step.node]) - 2
                like = replace(like_of(_limits(step.activation), rank), requires_grad=True)
                module = sliced_function(step.activation, slots, like)
                if step.node.op == "call_module" and step.node in self.editor.edits.before:
                    self.editor.replace_module(step.node, module)
                else:
                    new = self.editor.insert_module(module, [value], before=step.node, name="carry")
                    self.lifter.shapes[new] = self.lifter.shapes[step.node]
                    self.editor.replace(step.node, new)
                    self.editor.discard([step.node])
                    value = new
                    continue
            value = step.node

    def _lowered(self, step: Link, op: Conv) -> nn.Module:
        if step.node.op != "call_module":
            raise RefusedError("what reads its channels is no layer of its own")
        old = submodule(self.lifter.capture.module, str(step.node.target))
        return lower(op, like_of(list(old.parameters(recurse=False)), len(op.axes)))

    def _value(self, span: Span, channel: int) -> float | None:
        """Return the constant that a channel is where it is read; None when it is none."""
        value = _constant(cast(Conv, span.maker.ops[0]), channel, None)
        for step in span.steps:
            op = step.ops[0] if step.ops else None
            if isinstance(op, Conv):
                value = _constant(op, channel, value)
            elif step.activation is not None and value is not None:
                value = _image(step.activation, channel, value)
            elif isinstance(op, AvgPool) and value is not None:
                taps = prod(axis.kernel for axis in op.axes)
                value = None if value and op.zero_pads else value * op.factor * taps
        return value


def _constant(op: Conv, channel: int, value: float | None) -> float | None:
    """Return what a constant becomes in a channel's own row, None where it varies."""
    row = wide(op.weight[channel].detach())
    bias = 0.0 if op.bias is None else float(op.bias[channel].detach())
    if not bool((row != 0).any()) or value == 0:
        return bias
    return None if value is None or op.zero_pads else value * float(row.sum()) + bias


def _constants(op: Conv) -> dict[int, float]:
    """Return the channels whose weights are all zero, each with its bias."""
    silent = (op.weight.detach().flatten(1) == 0).all(1).nonzero().flatten().tolist()
    return {c: 0.0 if op.bias is None else float(op.bias[c].detach()) for c in silent}


def _reads_all(step: Link) -> bool:
    op = step.ops[0]
    return isinstance(op, Conv) and op.groups == 1 and not op.transposed and len(step.ops) == 1


def _rows(op: Conv, rows: Tensor, groups: int = 1) -> Conv:
    bias = None if op.bias is None else op.bias.detach()[rows]
    return replace(op, weight=op.weight.detach()[rows], bias=bias, groups=groups)


def _limits(act: Activation) -> list[Tensor]:
    """Return the bounds and slopes of a function that differ from channel to channel."""
    found = (*(act.bounds or ()), act.slope)
    return [limit for limit in found if isinstance(limit, Tensor) and limit.numel() > 1]


def _image(act: Activation, channel: int, value: float) -> float | None:
    """Return what a function makes of a constant in one channel."""
    if act.bounds is not None:
        low, high = (_at(limit, channel) for limit in act.bounds)
        return min(max(value, low), high)
    if act.slope is not None:
        return value if value >= 0 else value * _at(act.slope, channel)
    image = act.image(point(value))
    return image.low if image.low == image.high else None


def _at(limit: Limit, channel: int) -> float:
    if not isinstance(limit, Tensor):
        return limit
    flat = limit.detach().flatten()
    return float(flat[channel if flat.numel() > 1 else 0])


def _columns(op: Conv, rows: Tensor, lost: dict[int, float]) -> Conv:
    """Return the reader without the columns that are gone, their constant share in its bias."""
    weight = wide(op.weight.detach())
    share = weight.new_zeros(op.out_channels)
    for channel, value in lost.items():
        share += weight[:, channel].reshape(op.out_channels, -1).sum(1) * value
    bias = None if op.bias is None else wide(op.bias.detach()) + share
    if bias is None and bool((share != 0).any()):
        bias = share
    return replace(op, weight=op.weight.detach()[:, rows], bias=bias)


_MAX_POOLS = frozenset({nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d})
