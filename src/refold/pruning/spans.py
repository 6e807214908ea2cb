"""Where a convolution's channels go: the steps that keep them apart, and the layer that reads them.

Pruning asks here whether a channel may go at all, before anything is masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import cast

from torch import Tensor, fx

from refold.algebra.operator import Affine, AvgPool, Conv, Identity, Resample, wide
from refold.errors import RefusedError
from refold.graph import Activation, Lifter, Link, layer_class, link, submodule, written_out
from refold.ranked import MAX_POOLS


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

    @property
    def made(self) -> Conv:
        """Return the maker's operator."""
        return cast(Conv, self.maker.ops[0])

    @property
    def read(self) -> Conv:
        """Return the reader's operator."""
        return cast(Conv, self.reader.ops[0])

    def value(self, channel: int) -> float | None:
        """Return the constant that a channel is where it is read; None when it is none."""
        return self._carried(channel, _constant(self.made, channel, None))

    def loses(self, channel: int) -> bool:
        """Say whether a channel would go if the maker's row for it were 0."""
        value = self._carried(channel, 0.0)
        return value is not None and (value == 0 or not self.read.zero_pads)

    def _carried(self, channel: int, value: float | None) -> float | None:
        for step in self.steps:
            op = step.ops[0] if step.ops else None
            if isinstance(op, Conv):
                value = _constant(op, channel, value)
            elif step.activation is not None and value is not None:
                value = step.activation.at(value, channel)
            elif isinstance(op, AvgPool) and value is not None:
                taps = prod(axis.kernel for axis in op.axes)
                value = None if value and op.zero_pads else value * op.factor * taps
        return value


def makers(lifter: Lifter) -> Iterator[Link]:
    """Yield the dense convolutions and linear layers of a capture, in order."""
    for node in list(lifter.capture.graph.nodes):
        found = link(lifter, node)
        if not isinstance(found, Link) or len(found.ops) != 1 or node.op != "call_module":
            continue
        op = found.ops[0]
        if isinstance(op, Conv) and op.groups == 1 and not op.transposed:
            yield found


def span_of(lifter: Lifter, maker: Link) -> Span:
    """Follow a convolution's channels to the one layer that reads them.

    Raises:
        RefusedError: when they lead elsewhere.
    """
    steps: list[Link] = []
    node = maker.node
    while True:
        if any(user.op == "output" for user in node.users):
            raise RefusedError("its channels are an output")
        readers = [user for user in node.users if lifter.depends(user)]
        if len(readers) < len(node.users):
            raise RefusedError("more than one layer reads its channels, or asks their number")
        single = readers[0] if len(readers) == 1 else None
        found = single and (max_pool(lifter, single) or link(lifter, single))
        plain = isinstance(found, Link) and not any(isinstance(op, Affine) for op in found.ops)
        found = found if plain else written_out(lifter, node) or found
        if found is None and single is None:
            raise RefusedError("more than one layer reads its channels, or asks their number")
        if not isinstance(found, Link) or found.gate or found.source is not node:
            raise RefusedError("what reads its channels does not keep them apart")
        if found.is_affine and isinstance(found.ops[0], Conv) and _reads_all(found):
            if found.node.op != "call_module":
                raise RefusedError("its reader is not a layer")
            return Span(maker, tuple(steps), found)
        _check(lifter, found)
        steps.append(found)
        node = found.node


def limits(act: Activation) -> list[Tensor]:
    """Return the bounds and slopes of a function that differ from channel to channel."""
    found = (*(act.bounds or ()), act.slope)
    return [limit for limit in found if isinstance(limit, Tensor) and limit.numel() > 1]


def _check(lifter: Lifter, step: Link) -> None:
    op = step.ops[0] if len(step.ops) == 1 else None
    if step.activation is not None:
        calls = lifter.capture.calls.get(str(step.node.target), 1)
        if calls > 1 and limits(step.activation):
            raise RefusedError("the function behind it is called more than once")
        return
    if isinstance(op, Conv):
        if not (op.groups == op.in_channels == op.out_channels and not op.transposed):
            raise RefusedError("the grouped convolution behind it does not keep channels apart")
        if step.node.op != "call_module":
            raise RefusedError("the convolution behind it is not a layer")
        return
    if (isinstance(op, Resample) and op.counted) or not isinstance(
        op, (AvgPool, Identity, Resample)
    ):
        raise RefusedError("what is behind it does not keep channels apart")


def max_pool(lifter: Lifter, node: fx.Node) -> Link | None:
    """Return a max pool as a step: it keeps constants."""
    if node.op != "call_module" or str(node.target) in lifter.capture.pinned:
        return None
    pool = submodule(lifter.capture.module, str(node.target))
    if layer_class(pool) in MAX_POOLS.values() and not getattr(pool, "return_indices", False):
        return Link(node, cast(fx.Node, node.args[0]), (Identity(),))
    return None


def _constant(op: Conv, channel: int, value: float | None) -> float | None:
    """Return what a constant becomes in a channel's own row, None where it varies."""
    row = wide(op.weight[channel].detach())
    bias = 0.0 if op.bias is None else float(op.bias[channel].detach())
    if not bool((row != 0).any()) or value == 0:
        return bias
    return None if value is None or op.zero_pads else value * float(row.sum()) + bias


def _reads_all(step: Link) -> bool:
    op = step.ops[0]
    return isinstance(op, Conv) and op.groups == 1 and not op.transposed and len(step.ops) == 1
