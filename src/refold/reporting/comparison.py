"""What a report is about: a network before and after a verb, recorded and run in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from refold.account import Account
from refold.equivalence import Proof, cast_floats, in_float64
from refold.errors import RefoldError
from refold.graph import capture_all, unwrap
from refold.inputs import Arguments
from refold.reporting.flow import Box, Flow, draw
from refold.reporting.running import Values, clock, run

Fold = Callable[[nn.Module, Any], nn.Module]


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """A network before and after a verb.

    Args:
        name: what to call the network.
        before: as it was, in eval mode.
        after: what the verb made of it.
        inputs: an example that both take; None where none is known.
        account: of the verb.
        fold: does the same to another model, given its inputs: to the float64 copy whose values are
            compared step by step.
        proof: that both are the same function, where it was made.
        verb: what was done, as a heading says it.
        measure: also time every step of both.
    """

    name: str
    before: nn.Module
    after: nn.Module
    inputs: Arguments | None
    account: Account
    fold: Fold | None = None
    proof: Proof | None = None
    verb: str = "folded"
    measure: bool = False


@dataclass(eq=False)
class Side:
    """One of the two networks.

    Args:
        model: the network itself.
        flow: its boxes.
        values: what its steps give in float64.
        milliseconds: what each step takes, where it was timed.
    """

    model: nn.Module
    flow: Flow
    values: Values
    milliseconds: dict[fx.Node, float] = field(default_factory=dict[fx.Node, float])


def record(subject: Comparison) -> tuple[Side, Side]:
    """Record both networks of a comparison and run them in float64.

    The one before is recorded as a float64 copy, whose weights are the same numbers. The values of
    the one after are those of the same fold of that copy, so that they show the fold and not the
    rounding of its result.
    """
    plain, inputs = unwrap(subject.before), subject.inputs
    wide = copy.deepcopy(plain).to(torch.float64)
    after = Side(unwrap(subject.after), Flow(), {})
    after.flow = draw(capture_all(after.model, inputs).captures)

    def run_both() -> Side:
        exactly = _cast(inputs)
        found = capture_all(wide, exactly)
        exactly = found.made_up if exactly is None else exactly
        flow = draw(found.captures)
        after.values = _exact_values(subject, after.flow, wide, exactly) or {}
        return Side(plain, flow, run(flow.root, exactly))

    before = in_float64(run_both)
    if subject.measure and inputs is not None:
        _time(before, after, inputs)
    return before, after


def _cast(inputs: Arguments | None) -> Arguments | None:
    if inputs is None:
        return None
    return pytree.tree_map_only(Tensor, lambda t: cast_floats(t, torch.float64), inputs)


def _exact_values(
    subject: Comparison, flow: Flow, wide: nn.Module, exactly: Arguments | None
) -> Values | None:
    """Return what the steps of the result give in float64, None where that is not known."""
    if exactly is None:
        return None
    values = _values_of(subject.fold, flow, wide, exactly)
    if values is None:  # without the same fold in float64, the result itself, weights as they are
        copied = copy.deepcopy(unwrap(subject.after)).to(torch.float64)
        values = _values_of(lambda model, _: model, flow, copied, exactly)
    return values


def _values_of(fold: Fold | None, flow: Flow, model: nn.Module, inputs: Arguments) -> Values | None:
    if fold is None:
        return None
    try:
        other = draw(capture_all(unwrap(fold(model, inputs)), inputs).captures)
    except RefoldError:
        return None
    if not _is_like(flow, other):
        return None
    return matched(flow, other, run(other.root, inputs))


def matched(flow: Flow, other: Flow, values: Values) -> Values:
    """Return the values of the steps of a network, told from another of the same steps."""
    if not _is_like(flow, other):
        return {}
    own = zip(flow.boxes, other.boxes, strict=True)
    return {one.node: values[two.node] for one, two in own if two.node in values}


def _is_like(one: Flow, other: Flow) -> bool:
    return [_mark(box) for box in one.boxes] == [_mark(box) for box in other.boxes]


def _mark(box: Box) -> tuple[str, ...]:
    return box.place, box.title, box.detail


def _time(before: Side, after: Side, inputs: Arguments) -> None:
    """Time both networks in their own precision, step by step."""
    flow = draw(capture_all(before.model, inputs).captures)
    if len(flow.boxes) != len(before.flow.boxes):
        return
    times, others = clock([flow.root, after.flow.root], inputs)
    own = zip(before.flow.boxes, flow.boxes, strict=True)
    before.milliseconds = {one.node: times[two.node] for one, two in own if two.node in times}
    after.milliseconds = others
