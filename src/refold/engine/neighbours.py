"""Why neighbouring operators were left unfolded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from refold.algebra.cost import work
from refold.algebra.operator import Concat, Input, Operator, Refusal, Sequence, Sum, chain, leaves
from refold.rules.rule import Rule, Window


@dataclass
class Witness:
    """Says of a finished operator why its neighbours were not folded.

    Args:
        rules: the rules that ran.
        allow_growth: whether costlier merges were allowed.
        whole: folds a branch as far as it goes, whatever it costs.
    """

    rules: tuple[Rule, ...]
    allow_growth: bool
    whole: Callable[[Operator], Operator]

    def look(self, op: Operator) -> list[Refusal]:
        """Return a refusal for every pair of neighbours that a rule knows and did not merge."""
        found: list[Refusal] = []
        if isinstance(op, (Sequence, Sum, Concat)):
            for part in op.parts:
                found.extend(self.look(part))
        if isinstance(op, Sequence):
            for a, b in pairwise(op.parts):
                found.extend(self._ask(Sequence((a, b)), "series"))
        elif isinstance(op, Sum):
            found.extend(self._ask_sum(op))
        elif isinstance(op, Concat) and len({source_of(part) for part in op.parts}) == 1:
            found.extend(self._ask(op, "concat"))
        return found

    def _ask(self, window: Operator, kind: Window) -> list[Refusal]:
        for rule in (rule for rule in self.rules if rule.window == kind):
            result = rule(window)
            if isinstance(result, Refusal):
                return [Refusal(result.rule, result.reason, leaves(window))]
            if isinstance(result, Operator) and not self.allow_growth:
                return [_costlier(rule, window, result)]
        return []

    def _ask_sum(self, op: Sum) -> list[Refusal]:
        by_source: dict[object, list[Operator]] = {}
        for part in op.parts:
            by_source.setdefault(source_of(part), []).append(part)
        found: list[Refusal] = []
        for branches in by_source.values():
            for first, second in pairwise(branches):
                whole = [self.whole(branch) for branch in (first, second)]
                found.extend(self._ask(Sum(tuple(whole)), "parallel"))
        return found


def _costlier(rule: Rule, before: Operator, after: Operator) -> Refusal:
    more, less = f"{work(after):.0f}", f"{work(before):.0f}"
    growth = "more multiply-adds at the border"
    if more != less:
        growth = f"{more} multiply-adds per input position instead of {less}"
    reason = f"costlier: {growth}; pass allow_growth=True to merge anyway"
    return Refusal(rule.name, reason, leaves(before), costlier=True)


def source_of(op: Operator) -> object:
    """Return the key of the value a branch starts from, None for the operator's own input."""
    first = chain(op)[0]
    while isinstance(first, (Sum, Concat)):
        sources = {source_of(part) for part in first.parts}
        return sources.pop() if len(sources) == 1 else first
    return first.key if isinstance(first, Input) else None
