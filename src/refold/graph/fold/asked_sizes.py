"""Which value stands in when code asks for the size of one that a fold removes.

Every value of a region has its size told from what the region starts from: the channels, and per
spatial axis `(n + slack) // stride` of the `n` positions at the start. Such a size is equal for
every input or it is another one; anything that cannot be told so starts anew.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

from torch import fx

from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Identity,
    Input,
    Operator,
    Pad,
    Select,
    Sum,
    chain,
    leaves,
)
from refold.errors import RefusedError
from refold.graph.calls import is_kind_question, place_of, shape_readers
from refold.graph.fold.region import Region, node_of
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece


@dataclass(frozen=True)
class Size:
    """The size of a value.

    Args:
        start: the value that it is told from.
        channels: how many; None where they are those of the start.
        spatial: per axis the slack and the stride; empty where nothing changes.
    """

    start: Hashable
    channels: Hashable = None
    spatial: tuple[tuple[int, int], ...] = ()


Sizes = frozenset[Size]
"""Several ways to tell the one size of a value."""


def starting(value: Hashable) -> Sizes:
    """Return the size of a value that others are told from."""
    return frozenset({Size(value)})


def after(op: Operator, sizes: Sizes) -> Sizes:
    """Return the size of a leaf's value."""
    if isinstance(op, (Affine, Identity)):
        return sizes
    if isinstance(op, Select):
        return frozenset(replace(size, channels=len(op.index)) for size in sizes)
    if isinstance(op, Pad):
        return _resized(sizes, [(low + high, 1) for low, high in op.amounts])
    if isinstance(op, (AvgPool, Conv)) and not (isinstance(op, Conv) and op.transposed):
        found = _resized(sizes, [(axis.slack + axis.stride, axis.stride) for axis in op.axes])
        if isinstance(op, AvgPool):
            return found
        return frozenset(replace(size, channels=op.out_channels) for size in found)
    return starting((op, sizes))


def beside(parts: list[Sizes]) -> Sizes:
    """Return the size of values laid side by side along their channels."""
    counts = [{size.channels for size in part if isinstance(size.channels, int)} for part in parts]
    known = [min(count) for count in counts if count]
    total: Hashable = sum(known) if len(known) == len(parts) else tuple(parts)
    return frozenset(replace(size, channels=total) for part in parts for size in part)


def _resized(sizes: Sizes, axes: list[tuple[int, int]]) -> Sizes:
    """Return sizes after one more window: nested floor divisions are one floor division."""

    def resized(size: Size) -> Size:
        pairs = list(zip_longest(size.spatial, axes, fillvalue=(0, 1)))
        spatial = tuple((a + s * b, s * t) for (a, s), (b, t) in pairs)
        return replace(size, spatial=spatial if set(spatial) - {(0, 1)} else ())

    return frozenset(map(resized, sizes))


def sizes_before(lifter: Lifter, region: Region) -> dict[fx.Node, Sizes]:
    """Return the size of every value in a region, as it is in the graph."""
    own: dict[fx.Node, list[Operator]] = {}
    for leaf in dict.fromkeys(leaves(region.op)):
        own.setdefault(node_of(leaf), []).append(leaf)
    found: dict[fx.Node, Sizes] = {}
    for node in region.nodes:
        piece = lifter.lift(node)
        if not isinstance(piece, Piece):
            found[node] = starting(node)
            continue
        parts = [found.get(source) or starting(source) for source in piece.sources]
        if piece.join == "concat":
            found[node] = beside(parts)
        elif piece.join == "sum":
            found[node] = frozenset[Size]().union(*parts)
        else:
            [found[node]] = parts
            for leaf in own.get(node, ()):
                found[node] = after(leaf, found[node])
    return found


def size_of(op: Operator, found: dict[Operator, Sizes], sizes: Sizes = frozenset()) -> Sizes:
    """Return the size of an expression's value.

    Args:
        op: the expression.
        found: takes the size of each leaf's value.
        sizes: of what it is applied to, where it has no inputs of its own.
    """
    for part in chain(op):
        if isinstance(part, Input):
            sizes = starting(part.key)
        elif isinstance(part, Sum):
            branches = [size_of(branch, found, sizes) for branch in part.parts]
            sizes = frozenset[Size]().union(*branches)
        elif isinstance(part, Concat):
            sizes = beside([size_of(branch, found, sizes) for branch in part.parts])
        else:
            sizes = found[part] = after(part, sizes)
    return sizes


class Asked:
    """The values of a region whose size, type or device something asks for.

    Args:
        lifter: knows the shapes of the example.
        region: the region as it is in the graph.
        ranks: spatial axes of each leaf's value.
    """

    def __init__(self, lifter: Lifter, region: Region, ranks: dict[Operator, int | None]) -> None:
        values = (node for node in region.nodes if node is not region.root)
        self.readers = {node: found for node in values if (found := list(shape_readers(node)))}
        if self.readers:
            self._sizes = sizes_before(lifter, region)
            self._shapes = lifter.shapes
            self._ranks = {node_of(op): ranks[op] for op in region.leaves.intersection(ranks)}
            self._is_one_kind = set(region.inputs) <= set(_given_to_layers(region.op))

    def is_answered(self, node: fx.Node, given: Sizes) -> bool:
        """Say whether a value of this size tells the same as a node's value does."""
        if self._is_one_kind and all(map(is_kind_question, self.readers[node])):
            return True
        wanted = self._sizes[node]
        if not wanted.isdisjoint(given):
            return True
        spatial = {replace(size, channels=None) for size in wanted}
        if spatial.isdisjoint(replace(size, channels=None) for size in given):
            return False
        shape, rank = self._shapes.get(node), self._ranks.get(node)
        if not rank or shape is None or len(shape) != rank + 2:
            return False
        return all(_asks_no_channels(reader, rank) for reader in self.readers[node])

    def refusal(self, node: fx.Node, does: Literal["change", "remove"]) -> RefusedError:
        """Return the error that somebody asks for a size which the fold would change or remove."""
        home = getattr(self.readers[node][0].meta.get("frame"), "path", "")
        code = f"the code of {home}" if home else "the code"
        return RefusedError(
            f"{code} asks for the size of {place_of(node)}, and the fold would {does} it"
        )


def _given_to_layers(op: Operator) -> Iterator[Hashable]:
    """Yield the inputs of an expression that a layer reads: its weight has their type."""
    parts = chain(op)
    for part, reader in zip_longest(parts, parts[1:]):
        if isinstance(part, Input) and isinstance(reader, Conv):
            yield part.key
        for branch in part.parts if isinstance(part, (Sum, Concat)) else ():
            yield from _given_to_layers(branch)


def _asks_no_channels(reader: fx.Node, rank: int) -> bool:
    """Say whether a call asks a map (N, C, *spatial) for anything but its channels."""
    if reader.target == "size" and len(reader.args) > 1:
        return _leaves_channels_out(reader.args[1], rank)
    if reader.target != "size" and reader.args[1:] != ("shape",):
        return False
    return all(
        user.target is operator.getitem and _leaves_channels_out(user.args[1], rank)
        for user in reader.users
    )


def _leaves_channels_out(index: object, rank: int) -> bool:
    axes = range(rank + 2)
    if isinstance(index, slice):
        plain = all(end is None or isinstance(end, int) for end in (index.start, index.stop))
        return plain and index.step is None and 1 not in axes[index.start : index.stop]
    return isinstance(index, int) and index in range(-rank - 2, rank + 2) and axes[index] != 1
