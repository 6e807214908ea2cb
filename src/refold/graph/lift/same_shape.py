"""What the graph alone says about sizes, without example inputs.

A sum whose parts may be broadcast is not a sum of branches: what follows it must not be given to
each.
Two values surely have one shape when both come from one value through windows that leave as many
positions for every size, and their channels are known to be as many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from refold.algebra.operator import (
    Affine,
    AvgPool,
    Conv,
    Identity,
    Operator,
    Pad,
    Select,
    Zero,
    chain,
)
from refold.graph.calls import Kind, kind_of
from refold.graph.copies.modules import submodule
from refold.graph.lift.axes import keeps_shape
from refold.graph.lift.context import Context
from refold.graph.lift.piece import Piece
from refold.graph.trace.overridden import layer_class

Windows = tuple[tuple[int, int], ...]
"""(stride, slack) per spatial axis: n positions become (n + slack) // stride + 1."""


def are_even(context: Context, node: fx.Node, values: tuple[fx.Node, ...]) -> bool:
    """Return whether the values that `node` adds surely have one shape, whatever the input.

    What was told once is noted on the node: folding changes no value, but may hide the evidence.
    """
    if not node.meta.get("even"):
        shapes = [context.shape(value) for value in values]
        known = None not in shapes
        told = len(set(shapes)) == 1 if known else _meet(context, [_Term(v) for v in values])
        node.meta["even"] = told
    return bool(node.meta["even"])


def surely_alike(context: Context, values: tuple[fx.Node, ...]) -> bool:
    """Return whether values have one shape whatever the input, by what they are made from alone."""
    return _meet(context, [_Term(value) for value in values])


def have_same_places(context: Context, values: tuple[fx.Node, ...]) -> bool:
    """Return whether values have one shape whatever the input, their channels left out."""
    return _meet_in_places(context, [_Term(value) for value in values])


@dataclass
class _Term:
    """A value followed back to what it is made from.

    Args:
        at: how far back it was followed.
        windows: what its positions went through since; nothing for as many as there.
        scattered: the same from before the last transposed convolutions, the latest first.
        channels: its channels, None for those of `at`.
        rank: its spatial axes, None where nothing on the way told.
    """

    at: fx.Node
    windows: Windows = ()
    scattered: tuple[tuple[Windows, Windows], ...] = ()
    channels: int | None = None
    rank: int | None = None

    def step(self, context: Context) -> bool:
        """Follow the value one node back; return whether that can be told."""
        piece = context.lift(self.at)
        if not isinstance(piece, Piece):
            source = keeps_shape(context, self.at)
            self.at = source or self.at
            return source is not None
        if piece.join == "concat" or (piece.join == "sum" and not self.at.meta.get("even")):
            return False
        ops = piece.ops[:1] if piece.join == "none" else ()
        if piece.by_rank is not None and not piece.keeps_shape:
            ranked = self._ranked(context, piece)
            if ranked is None:
                return False
            ops = (ranked,)
        parts = [part for op in ops for part in reversed(chain(op))]
        if not all(self._passes(part) for part in parts):
            return False
        self.at = piece.sources[0]
        return True

    def _ranked(self, context: Context, piece: Piece) -> Operator | None:
        """Return what a pad or slice is on as many axes as the windows after it, or before it."""
        inner = context.lift(piece.sources[0])
        told = inner.rank_out if isinstance(inner, Piece) else None
        rank = len(self.windows) or told
        ranked = piece.by_rank(rank) if piece.by_rank is not None and rank else None
        return ranked[0] if isinstance(ranked, tuple) and ranked[1] == rank else None

    def _passes(self, op: Operator) -> bool:
        if isinstance(op, (Identity, Zero)):
            return True
        count = _channels_after(op)
        self.channels = count if self.channels is None else self.channels
        if isinstance(op, (Affine, Select)):
            return True
        steps = _steps(op)
        places = op.axes if isinstance(op, Conv) else steps
        if places is None or self.rank not in (None, len(places)):
            return False  # no windows, or a linear layer between maps: other axes are places
        self.rank = len(places)
        if steps is None and isinstance(op, Conv):  # transposed with a stride
            spread = tuple((a.stride, a.span - a.lo - a.hi) for a in op.axes)
            self.scattered, self.windows = (*self.scattered, (self.windows, spread)), ()
            return True
        if steps is None or len(steps) != len(self.windows or steps):
            return False
        after = self.windows or ((1, -1),) * len(steps)
        pairs = zip(steps, after, strict=True)
        windows = tuple((a * s, slack + a * (1 + k)) for (a, slack), (s, k) in pairs)
        self.windows = () if all(window == (1, -1) for window in windows) else windows
        return True


def _meet(context: Context, terms: list[_Term]) -> bool:
    """Follow all terms back to one value, and compare what came in between."""
    if not _meet_in_places(context, terms):
        return False
    counts = {term.channels for term in terms}
    if None in counts and len(counts) > 1:
        rank = next((len(term.windows) for term in terms if term.windows), None)
        counts = counts - {None} | {channels_of(context, terms[0].at, rank)}
    return len(counts) == 1


def _meet_in_places(context: Context, terms: list[_Term]) -> bool:
    """Follow all terms back to one value, the latest first, and compare what became of places."""
    while len({term.at for term in terms}) > 1:
        latest = max(term.at for term in terms)
        if not all(term.step(context) for term in terms if term.at is latest):
            return False
    return len({(term.windows, term.scattered) for term in terms}) == 1


def _steps(op: Operator) -> Windows | None:
    """Return what an operator does to positions, None if it is not a window of them."""
    if isinstance(op, Conv) and op.transposed:
        ones = all(axis.stride == 1 for axis in op.axes)
        return tuple((1, a.span - a.lo - a.hi - 2) for a in op.axes) if ones else None
    if isinstance(op, (Conv, AvgPool)):
        return tuple((axis.stride, axis.slack) for axis in op.axes)
    return tuple((1, lo + hi - 1) for lo, hi in op.amounts) if isinstance(op, Pad) else None


def _channels_after(op: Operator) -> int | None:
    if isinstance(op, Conv):
        return op.out_channels
    if isinstance(op, Select):
        return len(op.index)
    return op.channels if isinstance(op, Affine) else None


def channels_of(context: Context, value: fx.Node, rank: int | None) -> int | None:
    """Return the channels that a value of `rank` spatial axes surely has, None if nobody tells."""
    pending, seen, broadcast = [value], {value}, False
    while pending:
        node = pending.pop()
        count = _told(context, node, rank)
        if count is not None and (count > 1 or not broadcast):
            return count
        broadcast = broadcast or Kind.BROADCASTS in kind_of(node)
        sources = [source for source in _before(context, node) if source not in seen]
        seen.update(sources)
        pending.extend(sources)
    return None


def _before(context: Context, node: fx.Node) -> list[fx.Node]:
    """Return the values whose channels become those of a node's value, unless broadcast."""
    if Kind.BROADCASTS in kind_of(node):
        return [source for source in node.all_input_nodes if context.depends(source)]
    piece = context.lift(node)
    if isinstance(piece, Piece):
        same = piece.join != "concat" and piece.by_rank is None
        return list(piece.sources) if same or piece.keeps_shape else []
    source = keeps_shape(context, node)
    return [] if source is None else [source]


def _told(context: Context, node: fx.Node, rank: int | None) -> int | None:
    """Return the channels that a node's shape, its layer, its constants or a reader tell."""
    shape = context.shape(node)
    if shape is not None and rank is not None and rank < len(shape):
        return shape[len(shape) - 1 - rank]
    if Kind.BROADCASTS in kind_of(node):
        tensors = [context.tensor(source) for source in node.all_input_nodes]
        wide = [t for t in tensors if t is not None and rank is not None and t.ndim > rank]
        return next((n for n in (t.shape[-1 - (rank or 0)] for t in wide) if n > 1), None)
    piece = context.lift(node)
    if isinstance(piece, Piece) and piece.join == "none":
        parts = (op for op in reversed(chain(piece.ops[0])))
        count = next((n for n in map(_channels_after, parts) if n is not None), None)
        if count is not None:
            return count
    return next((n for n in (_asked(context, u, node, rank) for u in node.users) if n), None)


def _asked(context: Context, reader: fx.Node, value: fx.Node, rank: int | None) -> int | None:
    """Return the channels that a layer must be given by a value it reads."""
    if reader.op != "call_module" or reader.args[:1] != (value,):
        return None
    module: Any = submodule(context.capture.module, str(reader.target))
    kind = layer_class(module)
    if issubclass(kind, nn.Linear):
        return module.in_features if rank in (None, 0) else None
    if issubclass(kind, nn.modules.conv._ConvNd):  # type: ignore[reportPrivateUsage]
        return module.in_channels if rank in (None, len(module.kernel_size)) else None
    axes = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}.get(kind)
    return module.num_features if axes is not None and rank in (None, axes) else None
