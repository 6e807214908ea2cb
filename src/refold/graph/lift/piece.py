"""What one graph node means in the algebra, before it is joined with its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import fx

from refold.algebra.operator import Affine, Identity, Operator

Join = Literal["none", "sum", "concat"]
RankedOp = tuple[Operator, int | None]
Ranked = RankedOp | str | None


@dataclass(frozen=True, eq=False)
class Piece:
    """A node as an affine map of other nodes.

    Args:
        sources: the nodes it reads.
        ops: what it does to each before joining them.
        join: how several sources come together.
        rank_in: spatial axes its sources must have; None where any will do.
        rank_out: spatial axes of its value; None means those of its source.
        by_rank: where the meaning depends on the source's rank: the operator and the new rank, a
            reason why it has none, or None.
        keeps_shape: whether the value has the shape of its first source.
        through: nodes in between that only hand parts on, such as `chunk` before `getitem`.
    """

    sources: tuple[fx.Node, ...]
    ops: tuple[Operator, ...]
    join: Join = "none"
    rank_in: int | None = None
    rank_out: int | None = None
    by_rank: Callable[[int], Ranked] | None = None
    keeps_shape: bool = False
    through: tuple[fx.Node, ...] = ()

    @property
    def is_nothing(self) -> bool:
        """Whether the value is its source's."""
        plain = self.join == "none" and self.by_rank is None and not self.through
        return plain and isinstance(self.ops[0], Identity)


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


def relayout(source: fx.Node, by_rank: Callable[[int], Ranked]) -> Piece:
    """Return the piece of a change of layout, known once the source's rank is."""
    return Piece((source,), (Identity(),), by_rank=by_rank)


def norm_piece(source: fx.Node, op: Affine, shape: tuple[int, ...] | None) -> Piece:
    """Return the piece of a norm, which always scales axis 1."""
    if shape is not None:
        return unary(source, op, rank=len(shape) - 2, keeps_shape=True)

    def by_rank(rank: int) -> Ranked:
        return (op, rank) if rank else _AMBIGUOUS

    return Piece((source,), (op,), by_rank=by_rank, keeps_shape=True)


_AMBIGUOUS = (
    "whether the norm sees (N, C) or (N, L, C) depends on the input, and it scales axis 1; "
    "pass example_inputs"
)
