"""What the engine promises: idempotent, never costlier unasked, nothing changed, refusals told."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import Tensor

from helpers.nightly import some
from helpers.strategies import Case, Maker, gap, matrix_of
from refold.algebra.cost import measure, work
from refold.algebra.geometry import Axis
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Identity,
    Input,
    Operator,
    Pad,
    Resample,
    Select,
    Sequence,
    Sum,
    Zero,
    add,
    leaves,
    points,
    sequence,
)
from refold.engine.simplify import simplify
from refold.errors import RuleLoopError
from refold.rules import RULES
from refold.rules.rule import Rule, rule
from rules.trees import foldable, one_target, wild

EXACT = 1e-9
MAKER = Maker(Random(5), 2)
NEAR, BARE, POINT = (Axis(3, 1, 1, 1, 1),) * 2, (Axis(3),) * 2, points(2)
SHAPE = (4, 6, 5)


def conv(inputs: int, outputs: int, axes: tuple[Axis, ...] = POINT, bias: bool = True) -> Conv:
    weight = MAKER.tensor(outputs, inputs, *(axis.kernel for axis in axes))
    return Conv(weight, MAKER.tensor(outputs) if bias else None, axes)


def norm(channels: int) -> Affine:
    return Affine(MAKER.tensor(channels), MAKER.tensor(channels))


def tensors_of(op: Operator) -> list[Tensor]:
    return [v for leaf in leaves(op) for v in vars(leaf).values() if isinstance(v, Tensor)]


def shape_of(op: Operator) -> object:
    """Return a tree's form: kinds, windows and tensor shapes."""
    if isinstance(op, (Sequence, Sum, Concat)):
        return type(op).__name__, [shape_of(part) for part in op.parts]
    values = vars(op).values()
    return type(op).__name__, [v.shape if isinstance(v, Tensor) else v for v in values]


def is_equal(op: Operator, other: Operator, shape: tuple[int, ...] = SHAPE) -> bool:
    return gap(matrix_of(op, shape, 2), matrix_of(other, shape, 2)) <= EXACT


@pytest.mark.parametrize("seed", some(range(40), keep=14))
@pytest.mark.parametrize("growth", [False, True])
def test_idempotent_and_inputs_untouched(seed: int, growth: bool) -> None:
    case = (foldable if seed % 2 else wild)(Random(seed))
    form, copies = shape_of(case.op), [t.clone() for t in tensors_of(case.op)]
    once = simplify(case.op, allow_growth=growth)
    assert shape_of(case.op) == form
    assert all(torch.equal(t, c) for t, c in zip(tensors_of(case.op), copies, strict=True))
    twice = simplify(once.op, allow_growth=growth)
    assert shape_of(twice.op) == shape_of(once.op)
    assert not twice.steps
    assert [r.reason for r in twice.refusals] == [r.reason for r in once.refusals]


@pytest.mark.parametrize("seed", some(range(40), keep=14))
def test_never_costlier_unasked(seed: int) -> None:
    case = foldable(Random(100 + seed))
    result = simplify(case.op)
    assert work(result.op) <= work(case.op) * (1 + 1e-6)
    assert measure(result.op) <= measure(case.op)
    assert gap(case.dense(case.op), case.dense(result.op)) <= EXACT


@pytest.mark.parametrize("seed", range(30))
def test_meta_tensors_give_the_same_plan(seed: int) -> None:
    case = (foldable if seed % 2 else wild)(Random(200 + seed))
    shadow = on_meta(case.op)
    for growth in (False, True):
        real, planned = (
            simplify(case.op, allow_growth=growth),
            simplify(shadow, allow_growth=growth),
        )
        assert shape_of(planned.op) == shape_of(real.op)
        assert [s.rule.name for s in planned.steps] == [s.rule.name for s in real.steps]
        assert [r.reason for r in planned.refusals] == [r.reason for r in real.refusals]


def on_meta(op: Operator) -> Operator:
    if isinstance(op, (Sequence, Sum, Concat)):
        return type(op)(tuple(on_meta(part) for part in op.parts))
    values = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in vars(op).items()}
    return type(op)(**values)


@pytest.mark.parametrize("seed", range(30))
def test_gradients_reach_every_weight(seed: int) -> None:
    """The folded operator's gradient is the unfolded one's: folding can be trained through."""
    case = one_target(Random(300 + seed))
    grads: list[list[Tensor]] = []
    for tensor in tensors_of(case.op):
        tensor.requires_grad_()
    for op in (case.op, simplify(case.op, allow_growth=True).op):
        matrix, offset = case.dense(op)
        weight = torch.linspace(0.5, 1.5, offset.numel(), dtype=torch.float64)
        loss = ((matrix.sum(0) + offset) * weight).tanh().sum()
        inputs = list({id(t): t for t in tensors_of(case.op)}.values())
        found = torch.autograd.grad(loss, inputs, allow_unused=True)
        grads.append([torch.zeros(()) if g is None else g for g in found])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other.expand_as(one), rtol=1e-5, atol=1e-6)


def test_a_costlier_merge_waits_for_permission() -> None:
    """A bottleneck of 1x1 and 3x3 is cheaper in two."""
    op = sequence(conv(4, 1, bias=False), conv(1, 4, NEAR))
    lean = simplify(op)
    assert len(leaves(lean.op)) == 2
    assert [r.costlier for r in lean.refusals] == [True]
    assert "costlier: 144 multiply-adds per input position instead of 40" in lean.refusals[0].reason
    full = simplify(op, allow_growth=True)
    assert len(leaves(full.op)) == 1
    assert not full.refusals
    assert is_equal(op, full.op)


def test_a_sum_pays_for_what_a_branch_alone_would_not() -> None:
    bottleneck = sequence(conv(4, 1, bias=False), conv(1, 4, NEAR))
    result = simplify(add(bottleneck, conv(4, 4, NEAR)))
    assert len(leaves(result.op)) == 1


def test_a_refusal_changes_nothing() -> None:
    op = sequence(conv(4, 4), conv(4, 4, NEAR))
    result = simplify(op, allow_growth=True)
    assert leaves(result.op) == leaves(op)
    assert not result.steps
    assert result.refusals[0].operators == leaves(op)


def test_what_stands_still_is_the_same_object() -> None:
    """Leaves that no rule rewrites come back as they are, never as copies."""
    lone = Conv(MAKER.tensor(4, 4, 3, 3), None, NEAR)
    assert simplify(lone).op is lone
    op = sequence(conv(4, 4, NEAR), Pad(((1, 1), (1, 1)), value=2.0), lone)
    assert leaves(simplify(op).op)[-1] is lone


def test_steps_say_what_was_done() -> None:
    op = sequence(conv(4, 4, NEAR), norm(4))
    result = simplify(op)
    assert [(s.rule.name, s.window.parts) for s in result.steps] == [
        ("fold_affine_into_conv", op.parts)
    ]  # type: ignore[attr-defined]
    assert result.steps[0].after is result.op


def test_affines_travel_to_a_taker() -> None:
    """norm, pool, slice, flatten, linear: each lets the scale pass."""
    linear = Conv(MAKER.tensor(3, 2 * 2 * 2), MAKER.tensor(3))
    op = sequence(
        norm(4), AvgPool((Axis(3), Axis(3))), Select((0, 2), 4), AvgPool((Axis(3), Axis(2)))
    )
    whole = sequence(op, Flatten((2, 2)), linear)
    result = simplify(whole)
    assert not any(isinstance(leaf, Affine) for leaf in leaves(result.op))
    assert is_equal(whole, result.op)


def mean_of(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)


def test_a_head_moves_ahead_of_the_mean_where_growth_is_allowed() -> None:
    head = Conv(MAKER.tensor(8, 4), MAKER.tensor(8))
    op = sequence(conv(4, 4, NEAR), Resample(mean_of, 0, 0.0), head)
    assert len(leaves(simplify(op).op)) == 3
    result = simplify(op, allow_growth=True)
    assert "pass_pointwise_backward" in {step.rule.name for step in result.steps}
    assert len(leaves(result.op)) == 2
    assert is_equal(op, result.op)


def test_a_norm_after_a_sum_of_values_goes_to_both() -> None:
    branches = [sequence(Input(name, 4), conv(4, 4, NEAR)) for name in "ab"]
    op = sequence(add(*branches), norm(4))
    result = simplify(op)
    assert len(leaves(result.op)) == 2
    case = Case(op, (8, 6, 5), 2, 2, {"a": 4, "b": 4})
    assert gap(case.dense(op), case.dense(result.op)) <= EXACT


def test_depthwise_pool_branch_of_dbb_folds() -> None:
    """A pool followed by a norm beside a depthwise kernel: its channels are the norm's."""
    kernel = Conv(MAKER.tensor(4, 1, 3, 3), None, NEAR, 4)
    pool, factor = AvgPool(NEAR), Affine(torch.tensor(0.5))
    op = add(sequence(kernel, norm(4)), sequence(pool, norm(4)), sequence(pool, factor))
    result = simplify(op).op
    assert isinstance(result, Conv)
    assert result.groups == 4
    assert is_equal(op, result)


def test_one_branch_used_twice_counts_twice() -> None:
    branch = conv(4, 4, NEAR)
    op = add(branch, branch, Identity(), Identity())
    result = simplify(op).op
    assert len(leaves(result)) == 1
    assert is_equal(op, result)
    assert not is_equal(op, branch)


def test_odd_joins() -> None:
    """Joins of one part, zero branches, and parts that vanish altogether."""
    inner = sequence(conv(4, 4, NEAR), norm(4))
    assert isinstance(simplify(Sum((inner,))).op, Conv)
    assert is_equal(inner, simplify(Sum((inner,))).op)
    assert isinstance(simplify(Concat((inner,))).op, Conv)
    assert isinstance(simplify(add(inner, Zero(), sequence(inner, Zero()))).op, Conv)
    assert isinstance(simplify(sequence(Affine(), Affine(), Pad(((0, 0), (0, 0))))).op, Identity)
    gone = sequence(Input("x", 4), Sum((Zero(), Identity())), Select((0, 1, 2, 3), 4))
    assert len(leaves(simplify(gone).op)) == 0


def nested(levels: int) -> Operator:
    op: Operator = conv(4, 4, NEAR)
    for _ in range(levels):
        op = sequence(
            Concat((add(Identity(), sequence(op, conv(4, 4, NEAR))), Identity())), conv(8, 4, NEAR)
        )
    return op


def test_nested_joins_are_gone_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as deep takes a few times as many tries, not the square of them."""
    tries: list[str] = []
    call = Rule.__call__
    monkeypatch.setattr(Rule, "__call__", lambda r, op: (tries.append(r.name), call(r, op))[1])
    counts = []
    for levels in (4, 8):
        tries.clear()
        simplify(nested(levels))
        counts.append(len(tries))
    assert counts[1] < 6 * counts[0]


@rule("series", exact="always", source="nowhere")
def swap_forever(op: Operator) -> Operator:
    """Return the two operators in the other order."""
    assert isinstance(op, Sequence)
    return Sequence(op.parts[::-1])


@rule("parallel", exact="always", source="nowhere")
def turn_forever(op: Operator) -> Operator:
    """Return the branches in the other order."""
    assert isinstance(op, Sum)
    return Sum(op.parts[::-1])


@rule("commute", exact="always", source="nowhere")
def carry_forever(op: Operator) -> Operator:
    """Return the two operators in the other order."""
    assert isinstance(op, Sequence)
    return Sequence(op.parts[::-1])


def test_a_merge_or_a_move_that_gains_nothing_is_left() -> None:
    op = sequence(add(conv(4, 4, NEAR), conv(4, 4)), norm(4))
    result = simplify(op, (turn_forever, carry_forever))
    assert (leaves(result.op), result.steps) == (leaves(op), ())


def test_a_rule_that_gains_nothing_is_a_defect() -> None:
    with pytest.raises(RuleLoopError, match="swap_forever does not lower the measure"):
        simplify(sequence(norm(4), conv(4, 4, NEAR)), (swap_forever, *RULES))
