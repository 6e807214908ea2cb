"""Which values surely have one type and device, whatever those are."""

from __future__ import annotations

from torch import fx

from refold.algebra.operator import Affine, Conv, chain
from refold.graph.calls import canonical
from refold.graph.lift.activations import activation
from refold.graph.lift.context import Context
from refold.graph.lift.piece import Piece


def same_kind(context: Context, one: fx.Node, other: fx.Node) -> bool:
    """Say whether two values have the type and device of one value that both are made from.

    A layer's weight has the type of what it reads, and its value has it too; so has what an
    activation, or a product with a plain number, makes of a layer's value.
    """
    return one is other or _origin(context, one) is _origin(context, other)


def _origin(context: Context, value: fx.Node) -> fx.Node:
    """Return the first value of the same kind that a value is made from."""
    while (before := _before(context, value)) is not None:
        value = before
    return value


def _before(context: Context, node: fx.Node) -> fx.Node | None:
    piece = context.lift(node)
    if not isinstance(piece, Piece):
        found = activation(context, node)
        return found.source if found is not None and _is_real(context, found.source) else None
    if piece.join != "none":
        origins = {_origin(context, source) for source in piece.sources}
        return origins.pop() if len(origins) == 1 else None
    source = piece.sources[0]
    scales = any(isinstance(op, Affine) for op in chain(piece.ops[0]))
    if not scales or node.op == "call_module":
        return source
    return source if _is_number_call(context, node) and _is_real(context, source) else None


def _is_real(context: Context, value: fx.Node) -> bool:
    """Say whether a value surely is not an integer: a layer made it."""
    piece = context.lift(value)
    while isinstance(piece, Piece) and piece.join == "none":
        if value.op == "call_module" or any(isinstance(op, Conv) for op in chain(piece.ops[0])):
            return True
        value = piece.sources[0]
        piece = context.lift(value)
    return isinstance(piece, Piece) and all(_is_real(context, v) for v in piece.sources)


def _is_number_call(context: Context, node: fx.Node) -> bool:
    """Say whether a sum or product has a plain number beside its value."""
    call = canonical(node)
    if call is None:
        return False
    given = [value for value in call.arguments.values() if isinstance(value, fx.Node)]
    return len(given) == 1
