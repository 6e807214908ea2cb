"""Affine regions: the largest expression of operators that ends in one value of the graph.

From a value upwards, every affine node whose value nobody else reads becomes part of the
expression; everything else is one of its inputs. Two regions therefore never overlap, and a value
read twice is an input of the regions that read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from torch import fx

from refold.algebra.operator import (
    Concat,
    Flatten,
    Identity,
    Input,
    Operator,
    Sequence,
    Sum,
    chain,
    leaves,
    made_of,
    noted,
    sequence,
)
from refold.algebra.row import Reshaped, Unflatten
from refold.graph.calls import Kind, is_kind_question, kind_of, reads_shape_only
from refold.graph.lift.axes import same_layout
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Lifted, Piece
from refold.graph.lift.same_shape import are_even
from refold.graph.surgery.edits import alive


def inputs_of(op: Operator) -> Iterator[fx.Node]:
    """Yield the values that an expression starts from."""
    for part in chain(op):
        if isinstance(part, Input):
            assert isinstance(part.key, fx.Node)
            yield part.key
        elif isinstance(part, (Sum, Concat)):
            for branch in part.parts:
                yield from inputs_of(branch)


def nodes_of(*ops: Operator) -> frozenset[fx.Node]:
    """Return the nodes that leaves were lifted from, or made of."""
    return cast("frozenset[fx.Node]", made_of(*ops))


def node_of(leaf: Operator) -> fx.Node:
    """Return the node that a leaf of a region was lifted from."""
    [node] = nodes_of(leaf)
    return node


def exchange(op: Operator, change: Callable[[Input], Operator]) -> Operator:
    """Return an expression that starts from other values.

    Args:
        op: the expression.
        change: what takes the place of each value.
    """
    if isinstance(op, Sequence):
        return sequence(*(exchange(part, change) for part in op.parts))
    if isinstance(op, (Sum, Concat)):
        return type(op)(tuple(exchange(part, change) for part in op.parts))
    return change(op) if isinstance(op, Input) else op


@dataclass(frozen=True, eq=False)
class Region:
    """An expression and the nodes it was lifted from; each leaf is made of its node.

    Args:
        root: the node whose value the expression is.
        op: the expression.
        rank: spatial axes of the value, where known.
        nodes: every node inside, the root last.
        joins: the nodes that add or lay side by side.
        pieces: what the nodes were when they were lifted.
        shared: the nodes that other regions hold as well; nothing may be written in their places.
    """

    root: fx.Node
    op: Operator
    rank: int | None
    nodes: tuple[fx.Node, ...]
    joins: frozenset[fx.Node] = frozenset()
    pieces: tuple[Lifted, ...] = ()
    shared: frozenset[fx.Node] = frozenset()

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The values the expression starts from."""
        return tuple(dict.fromkeys(inputs_of(self.op)))

    @cached_property
    def leaves(self) -> frozenset[Operator]:
        """The leaves of the expression."""
        return frozenset(leaves(self.op))

    def origin(self, leaf: Operator) -> fx.Node | None:
        """Return the node that a leaf was lifted from, None for a leaf that is not one of ours."""
        return node_of(leaf) if leaf in self.leaves else None


class Regions:
    """Finds the regions of one capture.

    Args:
        lifter: lifts single nodes.
        pushed: values that are lifted into every reader although several read them; what they
            are made from stays an input.
        chains: leave joins out, so that every region is a plain chain.
    """

    def __init__(
        self, lifter: Lifter, pushed: frozenset[fx.Node] = frozenset(), *, chains: bool = False
    ) -> None:
        self.lifter = lifter
        self.pushed = pushed
        self.chains = chains
        self.reasons: dict[fx.Node, str] = {}
        self._ranks: dict[fx.Node, int | None] = {}  # told once: a value keeps its rank

    def largest(self, among: list[fx.Node] | None = None) -> list[Region]:
        """Return the regions that end among these nodes, none within another, in graph order."""
        found: list[Region] = []
        inside: set[fx.Node] = set()
        nodes = list(self.lifter.capture.graph.nodes) if among is None else among
        for node in nodes:  # first to last: whether a sum is even rests on those it is made from
            self.piece(node)
        for node in reversed(nodes):
            if node in inside or not node.users or not isinstance(self.piece(node), Piece):
                continue
            if self._only_lays_out(node):
                continue
            region = self.region(node)
            if region is not None:
                found.append(region)
                inside.update(region.nodes)
        return found[::-1]

    def _only_lays_out(self, node: fx.Node) -> bool:
        """Say whether a value is what another forward gives, laid out anew: its code may stay.

        Not where several read it: a norm may go into all of them.
        """
        lays_out = False
        if len(node.users) > 1:
            return False
        while True:
            piece = self.piece(node)
            if not isinstance(piece, Piece) or len(piece.sources) != 1:
                return False
            ops = list(self._told(piece))
            if not all(isinstance(op, _LAYOUTS) for op in ops):
                return False
            lays_out |= not all(isinstance(op, Identity) for op in ops)
            if piece.sources[0].meta.get("frame") != node.meta.get("frame"):
                return lays_out
            node = piece.sources[0]

    def _told(self, piece: Piece) -> Iterator[Operator]:
        """Yield what a piece of one value may be, for each rank that this may have."""
        if piece.by_rank is None:
            yield from piece.ops
            return
        shape = self.lifter.shapes.get(piece.sources[0])
        for rank in range(4) if shape is None else [max(len(shape) - 2, 0)]:
            ranked = piece.by_rank(rank)
            if isinstance(ranked, tuple):
                yield from chain(ranked[0])

    def current(self, region: Region) -> Region | None:
        """Return the region that ends where this one did, now that others were edited."""
        if not alive(region.root):
            return None
        same = all(map(alive, region.nodes)) and self._pieces(region.nodes) == region.pieces
        return region if same else self.region(region.root)

    def piece(self, node: fx.Node) -> Piece | str | None:
        """Return what the node is by itself."""
        lifted = self.lifter.lift(node)
        if not isinstance(lifted, Piece) or lifted.join == "none":
            return lifted
        if self.chains:
            return None
        if lifted.join == "sum" and not are_even(self.lifter, node, lifted.sources):
            self._note_uneven(node, lifted)
            return None
        return lifted

    def _note_uneven(self, node: fx.Node, piece: Piece) -> None:
        """Tell why a sum is none of branches, where two of its parts could be branches."""
        if sum(isinstance(self.lifter.lift(source), Piece) for source in piece.sources) > 1:
            self.reasons[node] = _MAY_BROADCAST

    def _pieces(self, nodes: tuple[fx.Node, ...]) -> tuple[Lifted, ...]:
        return tuple(self.lifter.lift(node) for node in nodes)

    def _joins(self, node: fx.Node) -> bool:
        piece = self.piece(node)
        return isinstance(piece, Piece) and piece.join != "none"

    def region(self, root: fx.Node) -> Region | None:
        """Return the region that ends in `root`, None when the node is not affine after all."""
        piece = self.piece(root)
        if not isinstance(piece, Piece):
            return None
        found = self._expression(root, piece, True, None)
        if found is None:
            return None
        entries = self._entries(found)
        passed = {node for source in entries for node in self._passed(source, entries[source])}
        nodes = tuple(node for node in found.nodes if node not in passed)
        joins = frozenset(node for node in nodes if self._joins(node))
        pieces = self._pieces(nodes)
        ends: dict[Any, fx.Node] = entries
        op = exchange(found.op, lambda x: Input(ends.get(x.key, x.key), x.channels))
        shared = self.pushed.intersection(nodes)
        return Region(root, op, found.rank, nodes, joins, pieces, shared)

    def _entries(self, found: _Expression) -> dict[fx.Node, fx.Node]:
        """Return, for each input, the last value that is still the input itself.

        Where only one path leads in, the identities on it belong to what came before; but a product
        with ones is computed, and goes with what it stands before.
        """
        entries: dict[fx.Node, fx.Node] = {}
        for source in set(inputs_of(found.op)):
            last = source
            while (step := self._only_nothing(last, found.nodes)) is not None:
                last = step
            if last is not source and last is not found.nodes[-1]:
                entries[source] = last
        return entries

    def _only_nothing(self, value: fx.Node, nodes: tuple[fx.Node, ...]) -> fx.Node | None:
        readers = [node for node in nodes if value in node.all_input_nodes]
        piece = self.piece(readers[0]) if len(readers) == 1 else None
        if not isinstance(piece, Piece) or not piece.is_nothing:
            return None
        return None if computes_nothing(self.lifter, readers[0]) else readers[0]

    def _passed(self, source: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
        while last is not source:
            yield last
            last = source_of(self.lifter, last)

    def _expression(
        self, node: fx.Node, piece: Piece, keeps: bool, wanted: int | None
    ) -> _Expression | None:
        """Return the expression that ends in `node`, read as a value of `wanted` axes."""
        keeps = keeps and piece.keeps_shape
        asked = piece.rank_in if piece.rank_in is not None else self._before(piece, wanted)
        parts = [self._value(source, node, piece, keeps, asked) for source in piece.sources]
        rank = piece.rank_in
        if rank is None:
            rank = next((part.rank for part in parts if part.rank is not None), None)
        if asked is None and rank is not None:  # the other branches tell
            parts = [
                self._value(source, node, piece, keeps, rank) if part.rank is None else part
                for part, source in zip(parts, piece.sources, strict=True)
            ]
        parts = [
            part if part.rank in (None, rank) else self._input(source)
            for part, source in zip(parts, piece.sources, strict=True)
        ]
        ops, rank_out = list(piece.ops), piece.rank_out
        if piece.by_rank is not None:
            known = next(
                (r for r in (rank, self._guess(piece.sources[0]), asked) if r is not None), None
            )
            ranked = None if known is None else piece.by_rank(known)
            if isinstance(ranked, str):
                self.reasons[node] = ranked
            if ranked is None or isinstance(ranked, str):
                return None
            ops[0], rank_out = ranked
        elif rank_out is None:
            rank_out = rank
        pairs = zip(parts, ops, strict=True)
        branches = [sequence(part.op, _signed(op, node)) for part, op in pairs]
        nodes = (inner for part in parts for inner in part.nodes)
        whole = (*nodes, *reversed(piece.through), node)
        return _Expression(_join(piece, branches), rank_out, whole)

    def _value(
        self, source: fx.Node, reader: fx.Node, piece: Piece, keeps: bool, wanted: int | None
    ) -> _Expression:
        inner = self.piece(source)
        if isinstance(inner, Piece) and self._absorbs(source, reader, piece, keeps):
            found = self._expression(source, inner, keeps, wanted)
            if found is not None:
                return found
        return self._input(source, wanted)

    def _absorbs(self, source: fx.Node, reader: fx.Node, piece: Piece, keeps: bool) -> bool:
        if source in self.lifter.tainted or piece.sources.count(source) > 1:
            return False
        if source in self.lifter.capture.elsewhere:
            return False
        if source in self.pushed:
            return True
        if reader in self.pushed:
            return False
        readers = set(source.users)
        direct = {node for node in readers if not reads_shape_only(node, source)}
        expected = {piece.through[-1] if piece.through else reader}
        asks_size = not all(map(is_kind_question, readers - direct))
        if direct != expected or (asks_size and not keeps and not self.chains):
            return False
        return all(_single_path(node, piece, reader) for node in piece.through)

    def _input(self, source: fx.Node, wanted: int | None = None) -> _Expression:
        shape, rank = self.lifter.shapes.get(source), self._guess(source)
        rank = wanted if rank is None else rank
        channels = None
        if shape is not None and rank is not None and len(shape) > rank:
            channels = shape[len(shape) - 1 - rank]
        return _Expression(Input(source, channels), rank, ())

    def _before(self, piece: Piece, wanted: int | None) -> int | None:
        """Return the rank of what a piece reads, told from the rank of what it gives."""
        if wanted is None or piece.by_rank is None:
            return wanted if piece.rank_out is None else None
        shape = self.lifter.shapes.get(piece.sources[0])
        outcomes = ((r, piece.by_rank(r)) for r in range(4 if shape is None else len(shape) - 1))
        fitting = [r for r, found in outcomes if isinstance(found, tuple) and found[1] == wanted]
        return fitting[0] if len(fitting) == 1 else None

    def _guess(self, source: fx.Node) -> int | None:
        """Return the rank of an opaque value where the value it was made from tells it."""
        path: list[fx.Node] = []
        current: fx.Node | None = source
        while current is not None and current not in self._ranks:
            path.append(current)
            piece = self.piece(current)
            told = piece.rank_out if isinstance(piece, Piece) and piece.by_rank is None else None
            if told is None:
                current = same_layout(self.lifter, current)
            else:
                self._ranks[current] = told
        rank = None if current is None else self._ranks[current]
        self._ranks.update(dict.fromkeys(path, rank))
        return rank


_LAYOUTS = (Identity, Flatten, Unflatten, Reshaped)
_MAY_BROADCAST = "whether the sum broadcasts a part depends on the input; pass example_inputs"


@dataclass(frozen=True, eq=False)
class _Expression:
    op: Operator
    rank: int | None
    nodes: tuple[fx.Node, ...]


def _signed(op: Operator, node: fx.Node) -> Operator:
    """Return what a node does, with the node noted on each leaf."""
    if isinstance(op, Sequence):
        return Sequence(tuple(_signed(part, node) for part in op.parts))
    return noted(op, frozenset({node}))


def _join(piece: Piece, branches: list[Operator]) -> Operator:
    if piece.join == "sum":
        return Sum(tuple(branches))
    return Concat(tuple(branches)) if piece.join == "concat" else branches[0]


def _single_path(node: fx.Node, piece: Piece, reader: fx.Node) -> bool:
    allowed = {*piece.through, reader}
    return all(user in allowed or reads_shape_only(user, node) for user in node.users)


def computes_nothing(lifter: Lifter, node: fx.Node) -> bool:
    """Say whether a node is a product with ones or a sum with zeros.

    By itself it stays where another input may have a precision that it widens; what folds around it
    takes it along, as that widens alike.
    """
    if Kind.BROADCASTS not in kind_of(node) or node not in lifter.shapes:
        return False
    piece = lifter.lift(node)
    if not isinstance(piece, Piece) or not piece.is_nothing:
        return False
    given = piece.sources[0].meta.get("dtype")
    return given is not None and node.meta.get("dtype") == given


def reader_of(lifter: Lifter, node: fx.Node) -> fx.Node:
    """Return the node that reads what `node` maps: itself, or what hands its part on."""
    piece = lifter.lift(node)
    return piece.through[-1] if isinstance(piece, Piece) and piece.through else node


def source_of(lifter: Lifter, node: fx.Node) -> fx.Node:
    """Return the one value that `node` maps, wherever it stands among the arguments."""
    inputs, piece = reader_of(lifter, node).all_input_nodes, lifter.lift(node)
    if isinstance(piece, Piece) and len(piece.sources) == 1 and piece.sources[0] in inputs:
        return piece.sources[0]
    return next(value for value in inputs if lifter.constants.value(value) is None)
