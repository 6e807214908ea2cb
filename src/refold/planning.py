"""The plan: every fold found in a model, every fold refused with its reason, and what it gains."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from refold.account import Account, kept_row, require_none
from refold.graph import (
    COMPUTED,
    Fold,
    FoldedModel,
    Kept,
    duplicate,
    fold_model,
    surroundings_kept,
    unwrap,
)
from refold.inputs import Arguments, arguments
from refold.rules import RULES
from refold.workload import workload_of


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

    @property
    def groups(self) -> dict[str, tuple[Fold, ...]]:
        """The steps by what they did: layers folded, branches merged, weights parametrized.

        A parametrized weight was computed at every call, and is stored now.
        """
        kinds = [(kind_of(step), step) for step in self.steps]
        return {name: tuple(step for kind, step in kinds if kind == name) for name in _KINDS}

    def to_dict(self) -> dict[str, Any]:
        """Return the account as plain data, ready for JSON."""
        steps = [{**step.to_dict(), "kind": kind_of(step)} for step in self.steps]
        shapes = [list(shape) for shape in self.made_up]
        return {**super().to_dict(), "steps": steps, "unrun": list(self.unrun), "made_up": shapes}

    def rows(self) -> list[list[str]]:
        """Return the rows of the table: the steps group by group, what was kept, what never ran."""
        steps = [self.row(step) for group in self.groups.values() for step in group]
        return [*steps, *map(kept_row, self.kept), *self._unrun_rows()]

    def row(self, step: Fold) -> list[str]:
        """Return the row of one step."""
        where, _, *rest = super().row(step)
        return [where, kind_of(step), *rest]

    def digest(self) -> str:
        """Return the table with long groups in a row each, and what was kept by its reasons."""
        rows: list[list[str]] = []
        for name, steps in self.groups.items():
            if len(steps) > _FEW:
                rows.append([_and_more([step.where for step in steps]), name, "", _change(steps)])
            else:
                rows.extend(map(self.row, steps))
        reasons: dict[str, list[Kept]] = {}
        for item in self.kept:
            reasons.setdefault(_gist(item), []).append(item)
        for gist, items in reasons.items():
            text = gist if len(items) > 1 else items[0].reason
            rows.append([_and_more([item.where for item in items]), "kept", text, ""])
        return self._table([*rows, *self._unrun_rows()])

    def _unrun_rows(self) -> list[list[str]]:
        done = "dropped" if self.dropped else "not run"
        more = "" if self.dropped else "; drop_unused=True leaves it out"
        return [[path, done, f"no recorded call runs it{more}", ""] for path in self.unrun]

    def counts(self) -> str:
        """Return how many steps of each group there were."""
        known = ((len(steps), name) for name, steps in self.groups.items())
        said = [f"{count} {name}" for count, name in known if count]
        return ", ".join(said) or super().counts()

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


_KINDS = ("folded", "merged", "parametrized")
_PARALLEL = ("parallel", "concat", "siblings")
_MERGES = frozenset(rule.name for rule in RULES if rule.window in _PARALLEL)
_FEW = 12
_COSTLIER = "costlier: it needs more multiply-adds than its parts; allow_growth=True makes it"


def kind_of(step: Fold) -> str:
    """Return which group of a plan a step belongs to."""
    rules = step.rule.split(", ")
    if COMPUTED in rules:
        return "parametrized"
    return "folded" if _MERGES.isdisjoint(rules) else "merged"


def _and_more(places: list[str]) -> str:
    first, rest = places[0] or "the root", len(places) - 1
    return f"{first} and {rest} more" if rest else first


def _change(steps: tuple[Fold, ...]) -> str:
    before = sum(step.parameters_before for step in steps)
    return f"{before:,} -> {sum(step.parameters_after for step in steps):,}"


def _gist(item: Kept) -> str:
    """Return a reason without what is true of one place alone."""
    if item.costlier:
        return _COSTLIER
    plain = re.sub(r" \([^()]*\)", "", item.reason)
    return re.sub(
        r": it comes from .*", "", re.sub(r"^[\w.]+\.\w+ (?=is|shares)", "a tensor ", plain)
    )


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    allow_growth: bool = False,
    strict: bool = False,
    drop_unused: bool = False,
) -> Plan:
    """Return what can be folded in `model`, what cannot and why; the model stays as it is.

    The page "Why was this not folded?" of the documentation explains each reason in `.kept`, and
    `refold inspect MODEL --why` prints what a network needs of it.

    Args:
        model: any module in eval mode.
        example_inputs: a tensor, a tuple or list of the model's arguments (a detector's list of
            images is one argument: `([a, b],)`), or a mapping of arguments by name. Without it
            only folds that hold for every shape are found, and no multiply-adds are counted.
        allow_growth: also make merges that need more multiply-adds than their parts.
        strict: raise when anything is kept.
        drop_unused: leave out the parts that no recorded call runs, or whose value nobody reads, as
            `reparameterize` does.

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
    return costed(model, inputs, done, dropped=drop_unused)


def costed(
    model: nn.Module, inputs: Arguments | None, done: FoldedModel, *, dropped: bool = False
) -> Plan:
    """Return the account of a fold with what the network costs before and after.

    Args:
        model: the original.
        inputs: what it runs on; without them no multiply-adds are counted.
        done: what folding it gave.
        dropped: whether the parts that no call runs are left out.
    """
    with surroundings_kept(unwrap(model)):  # the folded model's hooks are the model's own
        before, after = workload_of(unwrap(model), inputs), workload_of(done.model, inputs)
    return Plan(
        model=done.model,
        steps=done.folds,
        kept=done.kept,
        unrun=done.unrun,
        dropped=dropped,
        made_up=done.made_up,
        cost_before=before,
        cost_after=after,
    )
