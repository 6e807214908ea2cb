"""Each rule alone: what it accepts is equal, what it refuses has a reason, nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from helpers.strategies import gap, matrix_of, oracle
from refold.algebra.cost import measure
from refold.algebra.operator import Concat, Operator, Refusal, Sequence, Sum, leaves
from refold.rules import RULES, Rule
from rules.cases import CASES
from rules.parts import SHAPE

EXACT = 1e-9
BY_NAME = {rule.name: rule for rule in RULES}
ACCEPTED = [(name, i) for name, row in CASES.items() for i in range(len(row.accepts))]
REFUSED = [(name, i) for name, row in CASES.items() for i in range(len(row.refuses))]


def accepted(name: str, i: int) -> tuple[Rule, Operator]:
    return BY_NAME[name], CASES[name].accepts[i]


@pytest.mark.parametrize(("name", "i"), ACCEPTED)
def test_what_is_accepted_is_equal(name: str, i: int) -> None:
    rule, op = accepted(name, i)
    result = rule(op)
    assert isinstance(result, Operator), result
    assert gap(oracle(op, SHAPE), oracle(result, SHAPE)) <= EXACT
    assert gap(matrix_of(op, SHAPE, 2), matrix_of(result, SHAPE, 2)) <= EXACT


@pytest.mark.parametrize(("name", "i"), ACCEPTED)
def test_what_folds_lowers_the_measure(name: str, i: int) -> None:
    rule, op = accepted(name, i)
    result = rule(op)
    assert isinstance(result, Operator)
    if rule.window not in ("siblings", "commute", "distribute"):
        assert measure(result) < measure(op)


@pytest.mark.parametrize(("name", "i"), REFUSED)
def test_what_is_refused_has_a_reason(name: str, i: int) -> None:
    op, reason = CASES[name].refuses[i]
    result = BY_NAME[name](op)
    if reason is None:
        assert result is None
        return
    assert isinstance(result, Refusal), result
    assert result.rule == name
    assert result.operators == (op,)
    assert re.search(reason, result.reason), result.reason


def tensors_of(op: Operator) -> list[Tensor]:
    return [v for leaf in leaves(op) for v in vars(leaf).values() if isinstance(v, Tensor)]


def mapped(op: Operator, change: Callable[[Tensor], Tensor]) -> Operator:
    """Return the tree with every tensor changed."""
    if isinstance(op, (Sequence, Sum, Concat)):
        return type(op)(tuple(mapped(part, change) for part in op.parts))
    tensors = {f.name: getattr(op, f.name) for f in fields(op)}
    return replace(op, **{k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)})


def kind(outcome: Operator | Refusal | None) -> object:
    """Return what was decided, the numbers left out."""
    if isinstance(outcome, Operator):
        return [
            [getattr(x, "shape", x) if isinstance(x, Tensor) else x for x in vars(leaf).values()]
            for leaf in leaves(outcome)
        ]
    return outcome


@pytest.mark.parametrize(("name", "i"), ACCEPTED)
def test_leaves_are_read_and_not_changed(name: str, i: int) -> None:
    rule, op = accepted(name, i)
    before = mapped(op, torch.clone)
    rule(op)
    for leaf, copy in zip(leaves(op), leaves(before), strict=True):
        for value, kept in zip(vars(leaf).values(), vars(copy).values(), strict=True):
            assert torch.equal(value, kept) if isinstance(value, Tensor) else value == kept


@pytest.mark.parametrize(("name", "i"), ACCEPTED)
def test_meta_tensors_decide_alike(name: str, i: int) -> None:
    rule, op = accepted(name, i)
    shadow = rule(mapped(op, lambda t: t.to("meta")))
    assert kind(shadow) == kind(rule(op))
    if tensors_of(op):
        assert {t.device.type for t in tensors_of(shadow)} <= {"meta"}


@pytest.mark.parametrize(("name", "i"), ACCEPTED)
def test_a_bare_factor_may_live_elsewhere(name: str, i: int) -> None:
    """Python's numbers become tensors without axes, on no device in particular."""
    rule, op = accepted(name, i)
    mixed = mapped(op, lambda t: t.to("meta") if t.ndim else t)
    assert kind(rule(mixed)) == kind(rule(op))


@pytest.mark.parametrize(("name", "i"), REFUSED)
def test_meta_tensors_refuse_alike(name: str, i: int) -> None:
    op = CASES[name].refuses[i][0]
    assert kind(BY_NAME[name](mapped(op, lambda t: t.to("meta")))) == kind(BY_NAME[name](op))


@pytest.mark.parametrize(("name", "i"), ACCEPTED)
def test_gradients_flow_through(name: str, i: int) -> None:
    """The gradient of the rewritten operator's output is that of the original's."""
    rule, op = accepted(name, i)
    both = []
    for rewrite in (lambda o: o, rule):
        tree = mapped(op, lambda t: t.detach().double().requires_grad_())
        inputs = tensors_of(tree)
        matrix, offset = matrix_of(rewrite(tree), SHAPE, 2)
        noise = torch.Generator().manual_seed(1)
        loss = ((matrix.sum(0) + offset).sin() * torch.rand(len(offset), generator=noise)).sum()
        grads = torch.autograd.grad(loss, inputs, allow_unused=True) if loss.requires_grad else []
        both.append([torch.zeros(()) if g is None else g for g in grads])
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other.expand_as(one).to(one.dtype))
