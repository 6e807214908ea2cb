"""The values that an expression starts from: which they are, and others in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import fx

from refold.algebra.operator import Concat, Input, Operator, Sequence, Sum, chain, sequence


def inputs_of(op: Operator) -> Iterator[fx.Node]:
    """Yield the values that an expression starts from."""
    for part in chain(op):
        if isinstance(part, Input):
            assert isinstance(part.key, fx.Node)
            yield part.key
        elif isinstance(part, (Sum, Concat)):
            for branch in part.parts:
                yield from inputs_of(branch)


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
