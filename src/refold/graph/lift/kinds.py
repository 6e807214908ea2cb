"""Which values surely have one type and device, whatever those are."""

from __future__ import annotations

from torch import fx

from refold.algebra.operator import Affine, Conv, Operator, chain
from refold.graph.calls import canonical
from refold.graph.lift.activations import activation
from refold.graph.lift.context import Context
from refold.graph.lift.piece import Piece


def same_kind(context: Context, one: fx.Node, other: fx.Node) -> bool:
    """Say whether two values have the type and device of one value that both are made from.

    A layer's weight has the type of what it reads, and its value has it too; so has what an
    activation, or a product with a plain number, makes of a layer's value.
    """
    return one is other or _Origins(context).agree(one, other)


class _Origins:
    """What values are made from, each looked up once: paths through residual sums are many."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._origins: dict[fx.Node, fx.Node] = {}
        self._reals: dict[fx.Node, bool] = {}
        self._depth = 0

    def agree(self, one: fx.Node, other: fx.Node) -> bool:
        """Say whether two values are made from one of their kind."""
        return self._origin(one) is self._origin(other)

    def _origin(self, value: fx.Node) -> fx.Node:
        """Return the first value of the same kind that a value is made from."""
        passed = [value]
        while value not in self._origins and (before := self._before(value)) is not None:
            value = before
            passed.append(value)
        found = self._origins.get(value, value)
        self._origins.update(dict.fromkeys(passed, found))
        return found

    def _before(self, node: fx.Node) -> fx.Node | None:
        piece = self.context.lift(node)
        if not isinstance(piece, Piece):
            found = activation(self.context, node)
            return found.source if found is not None and self._is_real(found.source) else None
        if piece.join != "none":
            return self._common(piece)
        source = piece.sources[0]
        scales = any(isinstance(op, Affine) for op in chain(piece.ops[0]))
        if not scales or node.op == "call_module":
            return source
        return source if _is_number_call(node) and self._is_real(source) else None

    def _common(self, piece: Piece) -> fx.Node | None:
        """Return what all parts of a join are made from, if they are made from one value."""
        if self._depth >= _DEEPEST:
            return None
        self._depth += 1
        origins = {self._origin(source) for source in piece.sources}
        self._depth -= 1
        return origins.pop() if len(origins) == 1 else None

    def _is_real(self, value: fx.Node) -> bool:
        """Say whether a value surely is no integer: a layer made it."""
        passed = [value]
        while value not in self._reals:
            piece = self.context.lift(value)
            if not isinstance(piece, Piece):
                self._reals[value] = False
            elif value.op == "call_module" or any(isinstance(op, Conv) for op in _all_ops(piece)):
                self._reals[value] = True
            elif piece.join == "none":
                value = piece.sources[0]
                passed.append(value)
            else:
                self._reals[value] = self._are_real(piece)
        self._reals.update(dict.fromkeys(passed, self._reals[value]))
        return self._reals[value]

    def _are_real(self, piece: Piece) -> bool:
        if self._depth >= _DEEPEST:
            return False
        self._depth += 1
        answer = all(map(self._is_real, piece.sources))
        self._depth -= 1
        return answer


_DEEPEST = 100


def _all_ops(piece: Piece) -> tuple[Operator, ...]:
    return chain(piece.ops[0]) if piece.join == "none" else ()


def _is_number_call(node: fx.Node) -> bool:
    """Say whether a sum or product has a plain number beside its value."""
    call = canonical(node)
    if call is None:
        return False
    given = [value for value in call.arguments.values() if isinstance(value, fx.Node)]
    return len(given) == 1
