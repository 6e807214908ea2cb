"""Decide on shapes, then compute: a rewrite found on `meta` tensors is repeated on real ones.

Trying rules costs nothing on tensors without storage, so the engine may try many and the
arithmetic runs once, for the rewrites that were kept. This is sound because rules decide on
structure and geometry only.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from refold.algebra.operator import Concat, Identity, Input, Operator, Sequence, Sum
from refold.engine.ledger import Rewrite


class Replay:
    """Real operators by the stand-ins that took their place while deciding."""

    def __init__(self) -> None:
        self._real: dict[Operator, Operator] = {}
        self._sources: dict[Hashable, int] = {}
        self._count = 0
        self.shadow: Operator = Identity()

    def stand_in(self, op: Operator) -> Operator:
        """Return `op` with every tensor on `meta`, remembering what it stands for.

        Each stand-in is made of its own number.
        """
        self.adopt(self._shadow(op), op)
        return self.shadow

    def adopt(self, shadow: Operator, op: Operator) -> None:
        """Let the stand-in of an operator of the same structure stand for `op` too."""
        self.shadow = shadow
        self._match(shadow, op)

    def _shadow(self, op: Operator) -> Operator:
        if isinstance(op, (Sequence, Sum, Concat)):
            return type(op)(tuple(self._shadow(part) for part in op.parts))
        if isinstance(op, Input):  # its number: which value it is belongs to the real one
            return Input(self._sources.setdefault(op.key, len(self._sources)), op.channels)
        changes: dict[str, Any] = {
            item.name: value.to("meta")
            for item in fields(op)
            if isinstance(value := getattr(op, item.name), Tensor)
        }
        self._count += 1
        return replace(op, made_of=frozenset({self._count}), **changes)

    def real(self, op: Operator) -> Operator:
        """Return the real operator of one made of stand-ins."""
        if isinstance(op, (Sequence, Sum, Concat)):
            return type(op)(tuple(self.real(part) for part in op.parts))
        return self._real.get(op, op)

    def run(self, rewrite: Rewrite) -> Operator:
        """Return the real result of a rewrite that was found on stand-ins."""
        for step in rewrite.steps:
            result = step.rule(self.real(step.window))
            assert isinstance(result, Operator), f"{step.rule.name} decided on values"
            self._match(step.after, result)
        return self.real(rewrite.op)

    def _match(self, shadow: Operator, op: Operator) -> None:
        if isinstance(shadow, (Sequence, Sum, Concat)) and type(shadow) is type(op):
            for one, other in zip(shadow.parts, op.parts, strict=True):  # type: ignore[attr-defined]
                self._match(one, other)
        else:
            self._real.setdefault(shadow, op)
