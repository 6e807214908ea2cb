"""What one graph node means in the algebra, before it is joined with its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import fx

from refold.algebra.operator import Identity, Operator

Join = Literal["none", "sum", "concat"]
RankedOp = tuple[Operator, int | None]


@dataclass(frozen=True, eq=False)
class Piece:
    """A node as an affine map of other nodes.

    Args:
        sources: the nodes it reads.
        ops: what it does to each before joining them.
        join: how several sources come together.
        rank_in: spatial axes its sources must have; None where any will do.
        rank_out: spatial axes of its value; None means those of its source.
        by_rank: for changes of layout: the operator and the new rank, given the source's rank.
        keeps_shape: whether the value has the shape of its first source.
        through: nodes in between that only hand parts on, such as `chunk` before `getitem`.
    """

    sources: tuple[fx.Node, ...]
    ops: tuple[Operator, ...]
    join: Join = "none"
    rank_in: int | None = None
    rank_out: int | None = None
    by_rank: Callable[[int], RankedOp | None] | None = None
    keeps_shape: bool = False
    through: tuple[fx.Node, ...] = ()


Lifted = Piece | str | None
"""A piece; a sentence saying why this affine-looking node is not one; or None for anything else."""


def unary(
    source: fx.Node,
    op: Operator,
    *,
    rank: int | None = None,
    rank_out: int | None = None,
    keeps_shape: bool = False,
) -> Piece:
    """Return the piece of an operator on one value."""
    out = rank if rank_out is None else rank_out
    return Piece((source,), (op,), rank_in=rank, rank_out=out, keeps_shape=keeps_shape)


def nothing(source: fx.Node) -> Piece:
    """Return the piece of a call that hands its input on."""
    return unary(source, Identity(), keeps_shape=True)


def relayout(source: fx.Node, by_rank: Callable[[int], RankedOp | None]) -> Piece:
    """Return the piece of a change of layout, known once the source's rank is."""
    return Piece((source,), (Identity(),), by_rank=by_rank)
