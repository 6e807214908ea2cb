"""The plan: every fold found in a model, every fold refused with its reason, and what it gains."""

from __future__ import annotations

from typing import Any

from torch import nn

from refold.account import Account, require_none
from refold.graph import Kept, duplicate, fold_model, unwrap
from refold.inputs import arguments
from refold.workload import measure


class Plan(Account):
    """What `reparameterize` does to a model."""

    @property
    def refusals(self) -> tuple[Kept, ...]:
        """The same as `kept`."""
        return self.kept

    def apply(self) -> nn.Module:
        """Return the folded model; each call gives a copy of its own."""
        return duplicate(self.model)


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
        example_inputs: a tensor, a tuple or list of the model's arguments (a detector's list of
            images is one argument: `([a, b],)`), or a mapping of arguments by name. Without it
            only folds that hold for every shape are found, and no multiply-adds are counted.
        allow_growth: also make merges that need more multiply-adds than their parts.
        strict: raise when anything is kept.

    Raises:
        RefusedError: when the model is in training mode; with `strict`, when anything is kept, with
            the reasons.
        InputError: when the model cannot run on the example.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> plan(net, torch.zeros(1, 3, 8, 8)).summary()
        '1 folded, 0 kept; parameters 240 -> 224; multiply-adds 7,776 -> 7,776'
    """
    inputs = arguments(model, example_inputs)
    done = fold_model(model, inputs, allow_growth=allow_growth, check=True)
    if strict:
        require_none(done.kept)
    return Plan(
        model=done.model,
        steps=done.folds,
        kept=done.kept,
        cost_before=measure(unwrap(model), inputs),
        cost_after=measure(done.model, inputs),
    )
