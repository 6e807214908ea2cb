"""How many spatial axes the value has at each place of an expression."""

from __future__ import annotations

from refold.algebra.operator import (
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Operator,
    Pad,
    Resample,
    Sum,
    chain,
)


def ranks(op: Operator, rank: int | None) -> dict[int, int]:
    """Return the rank of the value that leaves each leaf, by the leaf's id, where it can be told.

    Args:
        op: the expression.
        rank: spatial axes of its value.

    Example:
        >>> from refold.algebra.operator import Affine, sequence
        >>> scale, tokens = Affine(), Resample(lambda x: x.flatten(2), 1, 1.0, 2)
        >>> ranks(sequence(scale, tokens), 1)[id(scale)]
        2
    """
    found: dict[int, int] = {}
    _backward(op, rank, found)
    return found


def _backward(op: Operator, rank: int | None, found: dict[int, int]) -> int | None:
    """Note the ranks below `op` given that of its value; return that of its input."""
    for part in reversed(chain(op)):
        if isinstance(part, (Sum, Concat)):
            entering = [_backward(branch, rank, found) for branch in part.parts]
            rank = next((each for each in entering if each is not None), None)
            continue
        rank = _own(part) if rank is None else rank
        if rank is not None:
            found[id(part)] = rank
        rank = _entering(part, rank)
    return rank


def _own(leaf: Operator) -> int | None:
    """Return the rank of the value of a leaf that tells it."""
    if isinstance(leaf, (Conv, AvgPool)):
        return len(leaf.axes)
    if isinstance(leaf, Pad):
        return len(leaf.amounts)
    return leaf.rank if isinstance(leaf, Resample) else 0 if isinstance(leaf, Flatten) else None


def _entering(leaf: Operator, rank: int | None) -> int | None:
    if isinstance(leaf, Resample):
        return leaf.source_rank
    return None if isinstance(leaf, Flatten) else rank
