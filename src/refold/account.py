"""The account of a verb: what it did to a network, what it left and why, and what both cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from refold.errors import RefusedError
from refold.graph import Fold, Kept
from refold.table import render
from refold.workload import Workload


@dataclass(frozen=True, eq=False, kw_only=True)
class Account:
    """What a verb did to a network.

    Args:
        model: the result.
        steps: what was done: where, by which rule, to what, parameters before and after.
        kept: what was left as it was, each with `where` and `reason`.
        cost_before: parameters and multiply-adds before the verb.
        cost_after: the same of the result.
        done: what happened to each step, in one word.
    """

    model: nn.Module = field(repr=False)
    steps: tuple[Fold, ...]
    kept: tuple[Kept, ...]
    cost_before: Workload
    cost_after: Workload
    done: str = "folded"

    def to_dict(self) -> dict[str, Any]:
        """Return the account as plain data, ready for JSON."""
        return {
            "steps": [step.to_dict() for step in self.steps],
            "kept": [item.to_dict() for item in self.kept],
            "cost_before": asdict(self.cost_before),
            "cost_after": asdict(self.cost_after),
        }

    def __str__(self) -> str:
        """Return a table of all steps and all that was kept, then one line of totals."""
        return self._table(self.rows())

    def _table(self, rows: list[list[str]]) -> str:
        table = render(["where", "", "what", "parameters"], rows) + "\n" if rows else ""
        return table + self.summary()

    def rows(self) -> list[list[str]]:
        """Return the rows of the table: the steps, then what was kept."""
        return [*map(self.row, self.steps), *map(kept_row, self.kept)]

    def row(self, step: Fold) -> list[str]:
        """Return the row of one step."""
        change = f"{step.parameters_before:,} -> {step.parameters_after:,}"
        return [step.where or "the root", self.done, step.detail, change]

    def counts(self) -> str:
        """Return how many steps there were."""
        return f"{len(self.steps)} {self.done}"

    def summary(self) -> str:
        """Return how much was done and what it changed, as one line."""
        before, after = self.cost_before, self.cost_after
        kept = f", {len(self.kept)} kept" if self.kept else ""
        text = f"{self.counts()}{kept}; parameters {before.parameters:,} -> {after.parameters:,}"
        if before.macs is None or after.macs is None:
            return text
        return f"{text}; multiply-adds {before.macs:,} -> {after.macs:,}"


def kept_row(item: Kept) -> list[str]:
    """Return the row of something that was left as it was."""
    return [item.where or "the root", "kept", item.reason, ""]


def require_none(kept: Sequence[Kept]) -> None:
    """Do what `strict=True` asks for.

    Raises:
        RefusedError: when something was kept; it names each place with its reason.
    """
    if kept:
        reasons = "\n".join(f"  {item.where or 'the root'}: {item.reason}" for item in kept)
        raise RefusedError(f"{len(kept)} kept, which strict=True forbids:\n{reasons}")
