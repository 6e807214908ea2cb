"""The plan: every fold found in a model, every fold refused with its reason, and what it gains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from refold.account import Account, require_none
from refold.graph import Kept, duplicate, fold_model, unwrap
from refold.inputs import arguments
from refold.workload import measure


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan(Account):
    """What `reparameterize` does to a model.

    Args:
        unrun: the largest parts that no recorded call runs; `drop_unused=True` leaves them out.
        dropped: whether they are left out.
        made_up: the shapes of the input that the model was recorded on, where none was given.
    """

    unrun: tuple[str, ...] = ()
    dropped: bool = False
    made_up: tuple[tuple[int, ...], ...] = ()

    @property
    def refusals(self) -> tuple[Kept, ...]:
        """The same as `kept`."""
        return self.kept

    def to_dict(self) -> dict[str, Any]:
        """Return the account as plain data, ready for JSON."""
        shapes = [list(shape) for shape in self.made_up]
        return {**super().to_dict(), "unrun": list(self.unrun), "made_up": shapes}

    def rows(self) -> list[list[str]]:
        """Return the rows of the table: the steps, what was kept, what does not run."""
        done = "dropped" if self.dropped else "not run"
        more = "" if self.dropped else "; drop_unused=True leaves it out"
        what = f"no recorded call runs it{more}"
        return [*super().rows(), *([path, done, what, ""] for path in self.unrun)]

    def summary(self) -> str:
        """Return how much was done and what it changed, as one line."""
        text = super().summary()
        if not self.made_up:
            return text
        shapes = " and ".join("x".join(map(str, shape)) for shape in self.made_up)
        return f"{text}; recorded on an input made up for it, {shapes}"

    def apply(self) -> nn.Module:
        """Return the folded model; each call gives a copy of its own."""
        return duplicate(self.model)


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    allow_growth: bool = False,
    strict: bool = False,
    drop_unused: bool = False,
) -> Plan:
    """Return what can be folded in `model`, what cannot and why; the model stays as it is.

    Args:
        model: any module in eval mode.
        example_inputs: a tensor, a tuple or list of the model's arguments (a detector's list of
            images is one argument: `([a, b],)`), or a mapping of arguments by name. Without it
            only folds that hold for every shape are found, and no multiply-adds are counted.
        allow_growth: also make merges that need more multiply-adds than their parts.
        strict: raise when anything is kept.
        drop_unused: leave out the parts that no recorded call runs, as `reparameterize` does.

    Raises:
        RefusedError: when the model is in training mode; with `strict`, when anything is kept, with
            the reasons.
        InputError: when the model cannot run on the example.

    Examples:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> plan(net, torch.zeros(1, 3, 8, 8)).summary()
        '1 folded; parameters 240 -> 224; multiply-adds 7,776 -> 7,776'
    """
    inputs = arguments(model, example_inputs)
    done = fold_model(model, inputs, allow_growth=allow_growth, check=True, drop_unused=drop_unused)
    if strict:
        require_none(done.kept)
    return Plan(
        model=done.model,
        steps=done.folds,
        kept=done.kept,
        unrun=done.unrun,
        dropped=drop_unused,
        made_up=done.made_up,
        cost_before=measure(unwrap(model), inputs),
        cost_after=measure(done.model, inputs),
    )
