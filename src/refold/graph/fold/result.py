"""What a region became: what of it is new, what it was made of, and where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from torch import fx

from refold.algebra.operator import (
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Input,
    Operator,
    Patches,
    Resample,
    Sum,
    chain,
    leaves,
)
from refold.algebra.row import Unflatten
from refold.errors import RefusedError
from refold.graph.fold.region import Region, inputs_of, node_of, nodes_of

Key = tuple[frozenset[fx.Node], frozenset[fx.Node]]
"""The nodes with leaves, and the inputs, that a value is made from."""


@dataclass
class Emitted:
    """Where the result of a fold stands and what its new layers cost."""

    where: str = ""
    macs: list[int | None] = field(default_factory=list[int | None])


class Result:
    """What a region became.

    Args:
        region: what is replaced.
        op: the new expression.
    """

    def __init__(self, region: Region, op: Operator) -> None:
        self.region = region
        self.op = op
        self.owners = nodes_of(region.op)
        self.below = _made_from(region)
        seen = leaves(op)
        self.ranks = ranks_of(op, region.rank)
        self._repeated = {leaf for leaf in seen if seen.count(leaf) > 1}
        self.torn = set(self._torn(seen))

    def _torn(self, seen: tuple[Operator, ...]) -> Iterator[Operator]:
        """Yield what is left of nodes that do several things, which no longer follow each other."""
        whole = {tuple(run) for _, run in groupby(seen, self.region.origin)}
        own: dict[fx.Node, dict[Operator, None]] = {}
        for leaf in leaves(self.region.op):
            own.setdefault(node_of(leaf), {})[leaf] = None
        for parts in own.values():
            if tuple(parts) not in whole:
                yield from parts.keys() & set(seen)

    def is_new(self, leaf: Operator) -> bool:
        """Whether a leaf needs a layer of its own.

        It is new, or stands in several branches by now, or its old node does more than that.
        """
        node = self.region.origin(leaf)
        return node is None or node in self.region.joins or leaf in self._repeated | self.torn

    def check_axes(self) -> None:
        """Refuse to lay values side by side along an axis that nobody knows.

        Raises:
            RefusedError: when the channel axis of a concatenation is unknown.
        """
        if any(self.ranks[op] is None for op in _concats(self.op)):
            raise RefusedError("the channel axis is unknown; pass example_inputs")

    def key_of(self, op: Operator) -> Key:
        """Return the old nodes that went into an expression, and the inputs it starts from."""
        return nodes_of(op), frozenset(inputs_of(op))

    def places(self, made: dict[Key, list[fx.Node]]) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Yield the old values that new ones are, each with the new one.

        Where several values are made from the same, the last of the old is the last of the new.
        """
        for key, values in made.items():
            own = (node for node in self.region.nodes if node not in self.region.shared)
            nodes = [node for node in own if self.below[node] == key]
            count = len(nodes) if len(nodes) == len(values) else 1
            yield from zip(nodes[-count:], values[-count:], strict=False)


def ranks_of(op: Operator, rank: int | None) -> dict[Operator, int | None]:
    """Return the spatial axes of each leaf's and join's value, walking back from the whole."""
    found: dict[Operator, int | None] = {}
    for part in reversed(chain(op)):
        if isinstance(part, (Sum, Concat)):
            rank = _told(part.parts) if rank is None else rank
            found[part] = rank
            for branch in part.parts:
                found.update(ranks_of(branch, rank))
            return found
        found[part] = rank
        if isinstance(part, Resample):
            rank = part.source_rank
        elif isinstance(part, (Conv, AvgPool, Patches)):
            rank = len(part.axes)
        elif isinstance(part, Flatten):
            rank = len(part.size)
        elif isinstance(part, Unflatten):
            rank = part.rank
    return found


def starts_of(op: Operator, value: fx.Node | None = None) -> Iterator[tuple[fx.Node, Operator]]:
    """Yield each value that an expression starts from with each leaf that reads it.

    Args:
        op: the expression.
        value: what it reads where it names no value itself.
    """
    for part in chain(op):
        if isinstance(part, Input):
            assert isinstance(part.key, fx.Node)
            value = part.key
            continue
        if isinstance(part, (Sum, Concat)):
            for branch in part.parts:
                yield from starts_of(branch, value)
        elif value is not None:
            yield value, part
        value = None


def _concats(op: Operator) -> Iterator[Concat]:
    for part in chain(op):
        if isinstance(part, Concat):
            yield part
        for branch in part.parts if isinstance(part, (Sum, Concat)) else ():
            yield from _concats(branch)


def _told(branches: tuple[Operator, ...]) -> int | None:
    """Return the spatial axes of the value that one of these branches ends with, if it tells."""
    ends = (chain(branch)[-1] for branch in branches)
    return next((len(end.axes) for end in ends if isinstance(end, (Conv, AvgPool))), None)


def _made_from(region: Region) -> dict[fx.Node, Key]:
    """Return, for each node of a region, the nodes with leaves and the inputs it is made from."""
    owners, inputs = nodes_of(region.op), set(region.inputs)
    found: dict[fx.Node, Key] = {}
    for node in region.nodes:
        parts = [found[source] for source in node.all_input_nodes if source in found]
        starts = inputs.intersection(node.all_input_nodes)
        own = frozenset({node}) if node in owners else frozenset[fx.Node]()
        leaves_of = own.union(*(part[0] for part in parts))
        found[node] = leaves_of, frozenset(starts).union(*(part[1] for part in parts))
    return found
