"""Drop channels that are constant: rows of zeros, and whatever only read them.

A masked network and its pruned form are equal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from refold.account import Account
from refold.algebra.cost import parameters
from refold.algebra.operator import Conv, wide
from refold.errors import RefusedError
from refold.graph import (
    Editor,
    Fold,
    Kept,
    Lifter,
    Link,
    frame_of,
    like_of,
    lower,
    rewrite,
    submodule,
)
from refold.inputs import required
from refold.pruning.choice import check_step, rounded, step_of
from refold.pruning.spans import Span, limits, makers, span_of
from refold.residuals import sliced_function
from refold.workload import workload_of


@dataclass(frozen=True)
class Dropped(Fold):
    """Channels that one layer lost.

    Args:
        channels: which ones, by their number in the folded network.
    """

    channels: tuple[int, ...] = ()


class DeadChannelPass:
    """Drops dead channels of one capture, from the input on.

    Args:
        lifter: lifts the capture's nodes.
        editor: edits its graph.
        round_to: every layer that loses channels keeps a multiple of so many.
    """

    def __init__(self, lifter: Lifter, editor: Editor, round_to: int = 1) -> None:
        self.lifter, self.editor, self.round_to = lifter, editor, round_to
        self.folds: list[Fold] = []
        self.starts: list[str] = []
        self.kept: list[Kept] = []
        self.left: dict[str, str] = {}
        self._alive: dict[str, list[int]] = {}  # of a layer: what its channels were at first

    def run(self) -> None:
        """Drop dead channels; note the reason for every layer that keeps one."""
        done = -1
        while done < len(self.folds):  # what is gone may leave channels before it unread
            done = len(self.folds)
            self.kept.clear()
            for maker in makers(self.lifter):
                self._try(maker)

    def _try(self, maker: Link) -> None:
        try:
            if maker.node.name in self.left:
                raise RefusedError(self.left[maker.node.name])
            self._drop(span_of(self.lifter, maker))
        except RefusedError as error:
            if _constants(cast(Conv, maker.ops[0])):
                self.kept.append(Kept(self._path(maker.node), str(error)))

    def _path(self, node: fx.Node) -> str:
        own = str(node.target) if node.op == "call_module" else frame_of(node).path
        return self.lifter.capture.full(str(node.meta.get("place", own)))

    def _drop(self, span: Span) -> None:
        made, read = span.made, span.read
        constant = {
            c: value for c in range(made.out_channels) if (value := span.value(c)) is not None
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
        self._round(span, lost)
        if not lost:
            return
        keep = [c for c in range(made.out_channels) if c not in lost]
        rows = torch.tensor(keep, device=made.weight.device)
        changes: list[tuple[Link, Conv]] = [(span.maker, _rows(made, rows))]
        for step in span.steps:
            if step.ops and isinstance(step.ops[0], Conv):
                changes.append((step, _rows(step.ops[0], rows, len(keep))))
        changes.append((span.reader, _columns(read, rows, lost)))
        self._write(span, changes, self._numbers(span, keep))
        self._slice_functions(span, keep)

    def _numbers(self, span: Span, keep: list[int]) -> tuple[int, ...]:
        """Note which channels of a layer stay, and return which go, as they were at first."""
        name = span.maker.node.name
        before = self._alive.get(name) or list(range(span.made.out_channels))
        self._alive[name] = [before[channel] for channel in keep]
        return tuple(sorted({*before} - {*self._alive[name]}))

    def _round(self, span: Span, lost: dict[int, float]) -> None:
        """Take channels out of those that go, so that what stays is a multiple."""
        width = span.made.out_channels
        left = width - len(lost)
        stay = rounded(width, left, self.round_to) - left
        for channel in sorted(lost)[:stay]:
            del lost[channel]
        if stay:
            step = step_of(width, self.round_to)
            reason = f"{stay} dead channels fill up a multiple of {step} (round_to)"
            self.kept.append(Kept(self._path(span.maker.node), reason))

    def _write(self, span: Span, changes: list[tuple[Link, Conv]], gone: tuple[int, ...]) -> None:
        ready = [(step.node, self._lowered(step, op)) for step, op in changes]
        before = sum(parameters(step.ops[0]) for step, _ in changes)
        for node, module in ready:
            self.editor.replace_module(node, module)
        after = sum(parameters(op) for _, op in changes)
        where, what = self._path(span.maker.node), f"{len(gone)} channels"
        self.folds.append(Dropped(where, "dead channels", what, before, after, channels=gone))
        self.starts.append(span.maker.node.name)

    def _slice_functions(self, span: Span, keep: list[int]) -> None:
        """Give functions with a number per channel those of the channels that are left."""
        value = span.maker.node
        for step in span.steps:
            if step.activation is not None and limits(step.activation):
                slots = tuple((channel, -1) for channel in keep)
                rank = len(self.lifter.shapes[step.node]) - 2
                like = replace(like_of(limits(step.activation), rank), requires_grad=True)
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
        old = submodule(self.lifter.capture.module, str(step.node.target))
        return lower(op, like_of(list(old.parameters()), len(op.axes)))


def _constants(op: Conv) -> dict[int, float]:
    """Return the channels whose weights are all zero, each with its bias."""
    silent = (op.weight.detach().flatten(1) == 0).all(1).nonzero().flatten().tolist()
    return {c: 0.0 if op.bias is None else float(op.bias[c].detach()) for c in silent}


def _rows(op: Conv, rows: Tensor, groups: int = 1) -> Conv:
    bias = None if op.bias is None else op.bias.detach()[rows]
    return replace(op, weight=op.weight.detach()[rows], bias=bias, groups=groups)


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


def drop_dead_channels(model: nn.Module, example_inputs: Any, *, round_to: int = 8) -> nn.Module:
    """Return the same function, norms folded, without channels that are constant or unread.

    A channel is dead when its weights are all zero (a norm with weight and bias 0 makes them so):
    its constant goes into the bias of the layer that reads it. Where that layer pads with zeros and
    the constant is not 0, the channel stays. A layer keeps at least one channel.

    Args:
        model: any module in eval mode; it stays as it is.
        example_inputs: a tensor, a tuple or list of arguments, or a mapping of them by name.
        round_to: every layer that loses channels keeps a multiple of so many, which runtimes
            compute faster, if it has as many; 8 means 16 in layers of 64 or more; 1 for no such
            limit.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when it is not a module, or cannot run on the example.

    Exact when:
        always, at the borders too; `dropping` says which dead channels stay and why.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
        >>> _ = net[0].weight.data[1:3].zero_()
        >>> drop_dead_channels(net, torch.zeros(1, 1, 9, 9))
        Sequential(
          (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
          (1): ReLU()
          (2): Conv2d(2, 2, kernel_size=(3, 3), stride=(1, 1))
        )

    Source: network slimming, arXiv:1708.06519.
    """
    make = partial(DeadChannelPass, round_to=check_step(round_to))
    return rewrite(model, required(model, example_inputs), make).model


def dropping(model: nn.Module, example_inputs: Any, *, round_to: int = 8) -> Account:
    """Return the account of `drop_dead_channels`: `steps` are the layers that lost channels.

    Args:
        model: any module in eval mode; it stays as it is.
        example_inputs: a tensor, a tuple or list of arguments, or a mapping of them by name.
        round_to: as there.

    Raises:
        RefusedError: when the model is in training mode.
        InputError: when it is not a module, or cannot run on the example.
    """
    inputs = required(model, example_inputs)
    done = rewrite(model, inputs, partial(DeadChannelPass, round_to=check_step(round_to)))
    return Account(
        model=done.model,
        steps=tuple(fold for one in done.passes for fold in one.folds),
        kept=tuple(kept for one in done.passes for kept in one.kept),
        cost_before=workload_of(done.folded, inputs),
        cost_after=workload_of(done.model, inputs),
        done="narrowed",
    )
