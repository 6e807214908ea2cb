"""The engine: run the rules on an operator until none applies.

What is kept lowers `measure`, so `simplify` ends; how that is seen to depends on a rule's window:

- series, last: what the rule makes must lower it; a rule that does not raises `RuleLoopError`;
- parallel, concat: a merge that does not lower it is left out;
- commute, distribute, siblings: a rewrite is kept with what then folds, where fewer leaves remain;
- a rule that `is_free` only takes branches away, and is not weighed.

Legal rewrites that need more multiply-adds are refused as costlier unless growth is allowed. What
was done and what was refused come back as data.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from refold.algebra.cost import work
from refold.algebra.operator import (
    Concat,
    Identity,
    Operator,
    Select,
    Sequence,
    Sum,
    add,
    chain,
    leaves,
    sequence,
)
from refold.algebra.row import fixes_size
from refold.engine.ledger import Ledger, RuleStep
from refold.engine.ledger import Rewrite as Rewrite
from refold.engine.neighbours import Witness, source_of
from refold.rules import RULES, Rule
from refold.rules.parallel import summands
from refold.rules.rule import Window
from refold.rules.siblings import head_of


def simplify(
    op: Operator, rules: tuple[Rule, ...] = RULES, *, allow_growth: bool = False
) -> Rewrite:
    """Return an operator equal to `op` on every input, with as few leaves as the rules reach.

    Args:
        op: what to simplify; its tensors are read, never changed.
        rules: tried in this order.
        allow_growth: also make merges that need more multiply-adds than their parts.

    Raises:
        RuleLoopError: when a rule of neighbours in series does not lower the measure (a defect of
            that rule).

    Examples:
        >>> import torch
        >>> from refold.algebra.operator import Affine, Conv, points
        >>> conv = Conv(torch.ones(2, 2, 1, 1), None, points(2))
        >>> type(simplify(sequence(conv, Affine(torch.ones(2)))).op).__name__
        'Conv'
    """
    return _Engine(rules, allow_growth).run(op)


@dataclass
class _Cluster:
    """Branches of a sum that merge: as they were, and as one operator."""

    lean: list[Operator]
    merged: Operator


class _Engine(Ledger):
    def run(self, op: Operator) -> Rewrite:
        result = self.reduce(op)
        witness = Witness(self.rules, self.allow_growth, lambda op: self._trial(True).reduce(op))
        refusals = witness.look(result)
        return Rewrite(result, tuple(self.steps), tuple(refusals))

    def _trial(self, allow_growth: bool, without: str = "") -> _Engine:
        rules = tuple(rule for rule in self.rules if rule.name != without)
        left_out = self.left_out | {without} if without else self.left_out
        return _Engine(rules, allow_growth, memory=self.memory, left_out=left_out)

    def reduce(self, op: Operator) -> Operator:
        if not isinstance(op, (Sequence, Sum, Concat)) or self.is_final(op):
            return op
        if isinstance(op, Sequence):
            result = self._reduce_chain(op)
        else:
            result = self._reduce_sum(op) if isinstance(op, Sum) else self._reduce_concat(op)
        self.finish(result)
        return result

    def of(self, window: Window) -> list[Rule]:
        return [rule for rule in self.rules if rule.window == window]

    # -- chains

    def _reduce_chain(self, op: Sequence) -> Operator:
        parts = list(chain(sequence(*(self.reduce(part) for part in op.parts))))
        while True:
            parts = self._fold_pairs(parts)
            moves = (move(parts) for move in (self._distribute, self._carry, self._last))
            better = next((moved for moved in moves if moved is not None), None)
            if better is None:
                return sequence(*parts)
            parts = better

    def _last(self, parts: list[Operator]) -> list[Operator] | None:
        return self._fold_one_pair(parts, "last") if self.allow_growth else None

    def _fold_pairs(self, parts: list[Operator]) -> list[Operator]:
        while (merged := self._fold_one_pair(parts)) is not None:
            parts = merged
        return parts

    def _fold_one_pair(
        self, parts: list[Operator], window_kind: Window = "series"
    ) -> list[Operator] | None:
        windows = [Sequence(pair) for pair in pairwise(parts)]
        for rule in self.of(window_kind):
            for i, window in enumerate(windows):
                result = rule(window)
                if isinstance(result, Operator) and self.accepts(rule, window, result):
                    self.record(rule, window, result)
                    return [*parts[:i], *_unwrapped(result), *parts[i + 2 :]]
        return None

    def _carry(self, parts: list[Operator]) -> list[Operator] | None:
        """Move one operator along the chain, and keep the move where a fold follows."""
        for rule in self.of("commute"):
            for start in range(len(parts)):
                moved = self._carry_one(parts, rule, start, -1 if rule.is_backward else 1)
                if moved is not None:
                    return moved
        return None

    def _carry_one(
        self, parts: list[Operator], rule: Rule, start: int, step: int
    ) -> list[Operator] | None:
        current, at = parts, start
        swaps: list[RuleStep] = []
        while 0 <= at + step < len(current):
            low = min(at, at + step)
            window = Sequence((current[low], current[low + 1]))
            swapped = rule(window)
            if not isinstance(swapped, Sequence):
                return None
            swaps.append(RuleStep(rule, window, swapped))
            current = [*current[:low], *swapped.parts, *current[low + 2 :]]
            at += step
            trial = self._trial(self.allow_growth)
            folded = trial._fold_pairs(current)
            if self.improves(sequence(*parts), sequence(*folded)):
                if fixes_size(folded) and not fixes_size(parts):
                    return None  # the plain network takes maps of other sizes as well
                self.steps.extend([*swaps, *trial.steps])
                return folded
        return None

    def _distribute(self, parts: list[Operator]) -> list[Operator] | None:
        """Give the operator after a join to its branches, and keep it where branches take it in."""
        for rule in self.of("distribute"):
            for i in range(len(parts) - 1):
                window = Sequence((parts[i], parts[i + 1]))
                spread = None if self.is_futile(rule, window) else rule(window)
                if not isinstance(spread, Operator):
                    continue
                trial = self._trial(self.allow_growth, rule.undone_by)
                result = trial.reduce(spread)
                if self.improves(window, result):
                    self.steps.extend([RuleStep(rule, window, spread), *trial.steps])
                    return [*parts[:i], *_unwrapped(result), *parts[i + 2 :]]
                self.give_up(rule, window)
        return None

    # -- joins

    def _reduce_sum(self, op: Sum) -> Operator:
        total = add(*(self.reduce(part) for part in summands(op)))  # a + b + c is one sum of three
        if not isinstance(total, Sum):
            return self.reduce(total) if total is not op else total
        for rule in (rule for rule in self.of("parallel") if rule.is_free):
            result = rule(total)
            if isinstance(result, Operator):
                self.record(rule, total, result)
                total = result
        if not isinstance(total, Sum):
            return total
        merged = self._merge_by_source(total)
        return self.reduce(merged) if isinstance(merged, Sequence) else merged

    def _merge_by_source(self, op: Sum) -> Operator:
        order: dict[object, list[Operator]] = {}
        for part in op.parts:
            order.setdefault(source_of(part), []).append(part)
        merged: list[Operator] = []
        for branches in order.values():
            merged.extend(self._merge_branches(branches))
        return add(*merged)

    def _merge_branches(self, branches: list[Operator]) -> list[Operator]:
        """Merge as many branches of one source as fit together and are worth it."""
        if len(branches) < 2:
            return branches
        full = [self._whole(branch) for branch in branches]
        merged = self._add(branches, full)
        if merged is not None:
            return [merged]
        clusters: list[_Cluster] = []
        heavy_first = sorted(range(len(branches)), key=lambda i: -work(branches[i]))
        for i in heavy_first:
            self._place(clusters, branches[i], full[i])
        if len(clusters) == len(branches):
            return self._stack_some(branches)  # in the order they came in: nothing changed
        return self._stack_some([c.merged if len(c.lean) > 1 else c.lean[0] for c in clusters])

    def _stack_some(self, branches: list[Operator]) -> list[Operator]:
        """Let branches of a sum that begin alike share their first layer where that pays."""
        alike: dict[object, list[Operator]] = {}
        for branch in branches:
            alike.setdefault(head_of(branch), []).append(branch)
        found = alike.pop(None, [])
        for parts in alike.values():
            whole = self._stack(Sum(tuple(parts))) if len(parts) > 1 else None
            found.extend(parts if whole is None else [whole])
        return branches if len(found) == len(branches) else found

    def _stack(self, join: Sum | Concat) -> Operator | None:
        for rule in self.of("siblings"):
            stacked = rule(join)
            if isinstance(stacked, Operator):
                trial = self._trial(self.allow_growth, rule.undone_by)
                if self.improves(join, result := trial.reduce(stacked)):
                    self.steps.extend([RuleStep(rule, join, stacked), *trial.steps])
                    return result
        return None

    def _place(self, clusters: list[_Cluster], lean: Operator, full: Operator) -> None:
        for cluster in clusters:
            merged = self._add([*cluster.lean, lean], [cluster.merged, full])
            if merged is not None:
                cluster.lean.append(lean)
                cluster.merged = merged
                return
        clusters.append(_Cluster([lean], full))

    def _whole(self, branch: Operator) -> Operator:
        """Return the branch folded as far as it goes: a sum may pay for costlier forms."""
        if self.allow_growth or len(leaves(branch)) < 2:
            return branch
        if branch not in self.wholes:  # a concatenation asks again for every window
            trial = self._trial(True)
            self.wholes[branch] = trial.reduce(branch), trial.steps
        whole, self.pending[whole] = self.wholes[branch]
        return whole

    def _add(self, lean: list[Operator], full: list[Operator]) -> Operator | None:
        for rule in self.of("parallel"):
            window = Sum(tuple(full))
            result = rule(window)
            if isinstance(result, Operator) and self.pays(Sum(tuple(lean)), result):
                self.settle(full)
                self.record(rule, window, result)
                return result
        return None

    def _reduce_concat(self, op: Concat) -> Operator:
        if self.allow_growth and (sliced := self._concat_slices(op)) is not None:
            return sliced
        parts = [self.reduce(part) for part in op.parts]
        flat = [p for part in parts for p in (part.parts if isinstance(part, Concat) else (part,))]
        for length in range(len(flat), 1, -1):
            for start in range(len(flat) - length + 1):
                merged = self._concat(flat[start : start + length])
                if merged is not None:
                    rest = [*flat[:start], merged, *flat[start + length :]]
                    return merged if len(rest) == 1 else self.reduce(Concat(tuple(rest)))
        return flat[0] if len(flat) == 1 else Concat(tuple(flat))

    def _concat_slices(self, op: Concat) -> Operator | None:
        """Slices side by side make a grouped convolution; folded first, they would be dense."""
        if not any(isinstance(leaf, Select) for leaf in leaves(op)):
            return None
        trial = self._trial(False)
        return self._concat([trial.reduce(part) for part in op.parts], trial.steps)

    def _concat(
        self, branches: list[Operator], prior: list[RuleStep] | None = None
    ) -> Operator | None:
        if len({source_of(branch) for branch in branches}) > 1:
            return None
        lean = Concat(tuple(branches))
        full = [self._whole(branch) for branch in branches]
        for rule in self.of("concat"):
            for window in (lean, Concat(tuple(full))):
                result = rule(window)
                if isinstance(result, Operator) and self.pays(lean, result):
                    self.steps.extend(prior or [])
                    self.settle([] if window is lean else full)
                    self.record(rule, window, result)
                    return self.reduce(result)
        return self._stack(lean)


def _unwrapped(op: Operator) -> tuple[Operator, ...]:
    return () if isinstance(op, Identity) else chain(op)
