"""A region's new expression beside its old nodes: what is new in it and what it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Operator,
    Resample,
    Sum,
    chain,
    leaves,
)
from refold.algebra.row import Unflatten
from refold.graph.layout import reads_shape_only
from refold.graph.lift import Lifter
from refold.graph.piece import Piece
from refold.graph.region import Region

Provenance = dict[int, frozenset[fx.Node]]


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
        origin: the nodes that went into each of its leaves, by the leaf's id.
    """

    def __init__(self, region: Region, op: Operator, origin: Provenance) -> None:
        self.region = region
        self.op = op
        self.origin = origin
        self.owners = {region.origins[id(leaf)] for leaf in leaves(region.op)}
        self.below = _owners_below(region)
        seen = [id(leaf) for leaf in leaves(op)]
        self.ranks = ranks_of(op, region.rank)
        self._repeated = {leaf for leaf in seen if seen.count(leaf) > 1}

    def is_new(self, leaf: Operator) -> bool:
        """Whether a leaf needs a layer of its own: it is new, or now stands in several branches."""
        node = self.region.origins.get(id(leaf))
        return node is None or node in self.region.joins or id(leaf) in self._repeated

    def made_of(self, op: Operator) -> frozenset[fx.Node]:
        """Return the old nodes that went into an expression."""
        return frozenset(node for leaf in leaves(op) for node in self._made_of(leaf))

    def _made_of(self, leaf: Operator) -> frozenset[fx.Node]:
        kept = self.region.origins.get(id(leaf))
        return self.origin[id(leaf)] if kept is None else frozenset({kept})


def ranks_of(op: Operator, rank: int | None) -> dict[int, int | None]:
    """Return the spatial axes of each leaf's value, walking back from the rank of the whole."""
    found: dict[int, int | None] = {}
    for part in reversed(chain(op)):
        if isinstance(part, (Sum, Concat)):
            for branch in part.parts:
                found.update(ranks_of(branch, rank))
            return found
        found[id(part)] = rank
        if isinstance(part, Resample):
            rank = part.source_rank
        elif isinstance(part, (Conv, AvgPool)):
            rank = len(part.axes)
        elif isinstance(part, Flatten):
            rank = len(part.size)
        elif isinstance(part, Unflatten):
            rank = part.rank
    return found


def _owners_below(region: Region) -> dict[fx.Node, frozenset[fx.Node]]:
    """Return, for each node of a region, the nodes with leaves that its value is made of."""
    owners = set(region.origins.values())
    below: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in region.nodes:
        parts = (below[source] for source in node.all_input_nodes if source in below)
        own = frozenset({node}) if node in owners else frozenset[fx.Node]()
        below[node] = own.union(*parts)
    return below


def reader_of(lifter: Lifter, node: fx.Node) -> fx.Node:
    """Return the node that reads what `node` maps: itself, or what hands its part on."""
    piece = lifter.lift(node)
    return piece.through[-1] if isinstance(piece, Piece) and piece.through else node


def source_of(lifter: Lifter, node: fx.Node) -> fx.Node:
    """Return the one value that `node` maps, wherever it stands among the arguments."""
    inputs = reader_of(lifter, node).all_input_nodes
    return next(value for value in inputs if lifter.constants.value(value) is None)


def shape_readers(node: fx.Node) -> Iterator[fx.Node]:
    """Return what reads only the size, type or device of a node's value."""
    return (user for user in node.users if reads_shape_only(user, node))


def same_shape(old: Operator, new: Operator) -> bool:
    """Return whether two leaves on one input surely give values of one shape."""
    if isinstance(old, Conv) and isinstance(new, Conv):
        slack = [(a.stride, a.slack) for a in old.axes] == [(a.stride, a.slack) for a in new.axes]
        return slack and old.out_channels == new.out_channels and old.transposed == new.transposed
    return old is new or (isinstance(old, Affine) and isinstance(new, Affine))
