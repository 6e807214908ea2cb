"""The engine's accounts: rewrites kept, what they cost, and attempts that gained nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from refold.algebra.cost import measure, work
from refold.algebra.operator import Operator, Refusal, Sequence, leaves
from refold.errors import RuleLoopError
from refold.rules.rule import Rule

_SLIP = 1 + 1e-9


@dataclass(frozen=True)
class RuleStep:
    """One accepted rewrite: the rule, the window it was shown and what it made of it."""

    rule: Rule
    window: Operator
    after: Operator


@dataclass(frozen=True)
class Rewrite:
    """The result of `simplify`: the operator, how it came about, and what was not folded."""

    op: Operator
    steps: tuple[RuleStep, ...] = ()
    refusals: tuple[Refusal, ...] = ()


@dataclass
class Ledger:
    """The accounts of one run.

    Args:
        rules: tried in this order.
        allow_growth: whether a rewrite may need more multiply-adds.
        steps: the rewrites kept so far.
        pending: rewrites that made a branch whole, by the branch, kept when the branch is used.
        wholes: by branch what it becomes when growth is allowed, and how.
        memory: what was finished or gained nothing, shared by all trials of a run: nested
            joins would otherwise be tried again at every level.
        left_out: rules that this trial does without.
    """

    rules: tuple[Rule, ...]
    allow_growth: bool
    steps: list[RuleStep] = field(default_factory=list[RuleStep])
    pending: dict[Operator, list[RuleStep]] = field(default_factory=dict[Operator, list[RuleStep]])
    wholes: dict[Operator, tuple[Operator, list[RuleStep]]] = field(
        default_factory=dict[Operator, tuple[Operator, list[RuleStep]]]
    )
    memory: set[tuple[object, ...]] = field(default_factory=set[tuple[object, ...]])
    left_out: frozenset[str] = frozenset()

    def accepts(self, rule: Rule, before: Operator, after: Operator) -> bool:
        """Whether a fold is kept.

        Raises:
            RuleLoopError: when it does not lower the measure: a defect of the rule.
        """
        if measure(after) >= measure(before):
            raise RuleLoopError(f"{rule.name} does not lower the measure of {before}")
        return self._is_affordable(before, after)

    def pays(self, before: Operator, after: Operator) -> bool:
        """Whether a merge lowers the measure at no cost that was not allowed."""
        return measure(after) < measure(before) and self._is_affordable(before, after)

    def improves(self, before: Operator, after: Operator) -> bool:
        """Whether a move led to fewer leaves at no cost that was not allowed."""
        return len(leaves(after)) < len(leaves(before)) and self._is_affordable(before, after)

    def record(self, rule: Rule, before: Operator, after: Operator) -> None:
        """Keep a rewrite."""
        self.steps.append(RuleStep(rule, before, after))

    def settle(self, full: list[Operator]) -> None:
        """Keep the rewrites that made these branches whole, now that they are used."""
        for part in full:
            self.steps.extend(self.pending.pop(part, []))

    def is_final(self, op: Operator) -> bool:
        """Whether this very operator came out of a reduction."""
        return (self.left_out, self.allow_growth, op) in self.memory

    def finish(self, op: Operator) -> None:
        """Remember the result of a reduction."""
        self.memory.add((self.left_out, self.allow_growth, op))

    def is_futile(self, rule: Rule, window: Sequence) -> bool:
        """Whether these very neighbours were exchanged before, and nothing was gained."""
        return self._key(rule, window) in self.memory

    def give_up(self, rule: Rule, window: Sequence) -> None:
        """Remember an exchange that gained nothing."""
        self.memory.add(self._key(rule, window))

    def _key(self, rule: Rule, window: Sequence) -> tuple[object, ...]:
        return rule.name, self.left_out, self.allow_growth, *window.parts

    def _is_affordable(self, before: Operator, after: Operator) -> bool:
        return self.allow_growth or work(after) <= work(before) * _SLIP
