"""The plan: every fold found in a model, every fold refused with its reason, and what it gains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from refold.errors import RefusedError
from refold.graph import Fold, Kept, Outcome, duplicate, fold_model, unwrap
from refold.table import render
from refold.workload import Workload, measure


@dataclass(frozen=True, eq=False)
class Plan:
    """What `reparameterize` does to a model.

    Args:
        steps: accepted folds: where, by which rule, from what, parameters and multiply-adds before
            and after.
        refusals: candidates that stay, each with the reason.
        cost_before: parameters and multiply-adds of the model as given.
        cost_after: the same of the folded model.
    """

    steps: tuple[Fold, ...]
    refusals: tuple[Kept, ...]
    cost_before: Workload
    cost_after: Workload
    _outcome: Outcome = field(repr=False)

    def apply(self) -> nn.Module:
        """Return the folded model; each call gives a copy of its own."""
        return duplicate(self._outcome.model)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data, ready for JSON."""
        return {
            "steps": [step.to_dict() for step in self.steps],
            "refusals": [refusal.to_dict() for refusal in self.refusals],
            "cost_before": _cost(self.cost_before),
            "cost_after": _cost(self.cost_after),
        }

    def __str__(self) -> str:
        """Return a table of all candidates and one line of totals."""
        rows = [[s.where, "folded", s.detail, _change(s)] for s in self.steps]
        rows += [[r.where, "kept", r.reason, ""] for r in self.refusals]
        table = render(["where", "", "what", "parameters"], rows) + "\n" if rows else ""
        return table + self.summary()

    def summary(self) -> str:
        """Return how much was folded and what it changed, as one line."""
        before, after = self.cost_before, self.cost_after
        text = (
            f"{len(self.steps)} folded, {len(self.refusals)} kept; "
            f"parameters {before.parameters:,} -> {after.parameters:,}"
        )
        if before.macs is None or after.macs is None:
            return text
        return f"{text}; multiply-adds {before.macs:,} -> {after.macs:,}"


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    allow_growth: bool = False,
    strict: bool = False,
) -> Plan:
    """Return what can be folded in `model`, what cannot and why; the model stays as it is.

    Args:
        model: any module in eval mode.
        example_inputs: a tensor, the tuple of the model's arguments (a detector's list of images
            is one: `([a, b],)`), or a mapping of them by name. Without it only folds that hold for
            every shape are found, and no multiply-adds are counted.
        allow_growth: also merge what then needs more multiply-adds than its parts.
        strict: raise when anything is refused.

    Raises:
        RefusedError: when the model is in training mode; with `strict`, when a candidate cannot be
            folded.
        InputError: when the model cannot run on the example.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> plan(net, torch.zeros(1, 3, 8, 8)).summary()
        '1 folded, 0 kept; parameters 240 -> 224; multiply-adds 7,776 -> 7,776'
    """
    outcome = fold_model(model, example_inputs, allow_growth=allow_growth, check=True)
    if strict and outcome.kept:
        reasons = "\n".join(f"  {item.where}: {item.reason}" for item in outcome.kept)
        raise RefusedError(f"{len(outcome.kept)} candidates cannot be folded:\n{reasons}")
    before = measure(unwrap(model), example_inputs)
    after = measure(outcome.model, example_inputs)
    return Plan(outcome.folds, outcome.kept, before, after, outcome)


def _cost(cost: Workload) -> dict[str, int | None]:
    return {"parameters": cost.parameters, "macs": cost.macs}


def _change(step: Fold) -> str:
    return f"{step.parameters_before:,} -> {step.parameters_after:,}"
