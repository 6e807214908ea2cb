"""Decide once for all expressions of one structure: deep networks repeat a few blocks.

Rules decide on structure and geometry only, so a rewrite found for one block holds for every block
of the same operators, shapes and sources.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import fields
from functools import partial
from typing import Any

from torch import Tensor

from refold.algebra.operator import Concat, Input, Operator, Sequence, Sum
from refold.engine.ledger import Rewrite
from refold.engine.replay import Replay
from refold.engine.simplify import simplify
from refold.rules import RULES, Rule

_Rules = tuple[Rule, ...]


class Decisions:
    """Finds rewrites on stand-ins, and finds the same one for the same structure.

    Args:
        allow_growth: also make merges that need more multiply-adds.
    """

    def __init__(self, allow_growth: bool = False) -> None:
        self.allow_growth = allow_growth
        self._stand_ins: dict[Hashable, Operator] = {}
        self._rewrites: dict[tuple[Operator, _Rules], Rewrite] = {}

    def stand_in(self, op: Operator) -> tuple[Operator, Replay]:
        """Return the stand-in that all expressions of the structure of `op` share."""
        replay, key = Replay(), structure(op, {})
        known = self._stand_ins.get(key)
        if known is None:
            known = self._stand_ins[key] = replay.stand_in(op)
        else:
            replay.adopt(known, op)
        return known, replay

    def rewrite(self, shadow: Operator, rules: _Rules = RULES) -> Rewrite:
        """Return what the rules make of a stand-in that `stand_in` returned."""
        key = shadow, rules
        if key not in self._rewrites:
            self._rewrites[key] = simplify(shadow, rules, allow_growth=self.allow_growth)
        return self._rewrites[key]


def structure(op: Operator, sources: dict[Hashable, int]) -> Hashable:
    """Return all that rules may decide on: types, shapes, geometry, which sources are the same.

    Args:
        op: the expression.
        sources: the number of each source met so far.

    Examples:
        >>> from refold.algebra.operator import Affine, sequence
        >>> import torch
        >>> one, other = (sequence(Input(name), Affine(torch.rand(3))) for name in "ab")
        >>> structure(one, {}) == structure(other, {})
        True
    """
    if isinstance(op, (Sequence, Sum, Concat)):
        return type(op), *(structure(part, sources) for part in op.parts)
    if isinstance(op, Input):
        return type(op), sources.setdefault(op.key, len(sources)), op.channels
    told = (item.name for item in fields(op) if item.name != "made_of")
    return type(op), *(_told(getattr(op, name)) for name in told)


def _told(value: Hashable | Tensor | partial[Any]) -> Hashable:
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, partial):  # made anew for each call, and equal only to itself
        return partial, value.func, _told_all(value.args), _told_all(value.keywords.items())
    return value


def _told_all(values: Iterable[Any]) -> Hashable:
    return tuple(
        _told_all(value) if isinstance(value, (list, tuple)) else value for value in values
    )
