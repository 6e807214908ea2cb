"""Blocks of one structure are decided once, and each keeps its own numbers and sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from refold.algebra.apply import apply
from refold.algebra.geometry import Axes, Axis
from refold.algebra.operator import (
    Affine,
    Conv,
    Input,
    Operator,
    Resample,
    Sequence,
    Sum,
    add,
    sequence,
)
from refold.engine import simplify as engine
from refold.engine.decisions import Decisions, structure

_AXES = (Axis(3, 1, 1, 1, 1), Axis(3, 1, 1, 1, 1))


def _block(key: str, *, groups: int = 1, mode: str = "zeros", channels: int = 4) -> Operator:
    """Return two convolutions with norms and an identity with one, all on the same value."""
    arms: list[Operator] = []
    for axes in (_AXES, (Axis(1), Axis(1))):
        kernel = tuple(axis.kernel for axis in axes)
        weight = torch.randn(channels, channels // groups, *kernel, dtype=torch.float64)
        arms.append(sequence(Input(key), Conv(weight, None, axes, groups, mode), _norm(channels)))
    return add(*arms, sequence(Input(key), _norm(channels)))


def _norm(channels: int) -> Affine:
    draw = torch.randn(2, channels, dtype=torch.float64)
    return Affine(draw[0], draw[1])


def _conv(axes: Axes) -> Conv:
    return Conv(torch.ones(2, 2, 3, 3), None, axes)


def _value(op: Operator, values: dict[str, Tensor]) -> Tensor:
    return apply(op, values)


def test_the_same_structure_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Operator] = []
    original: Callable[..., engine.Rewrite] = engine.simplify

    def counted(op: Operator, *args: object, **options: bool) -> engine.Rewrite:
        calls.append(op)
        return original(op, *args, **options)

    monkeypatch.setattr("refold.engine.decisions.simplify", counted)
    decisions = Decisions()
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    for key in "abc":
        block = _block(key)
        shadow, replay = decisions.stand_in(block)
        folded = replay.run(decisions.rewrite(shadow))
        assert isinstance(folded, Sequence)
        assert [type(part) for part in folded.parts] == [Input, Conv]
        wanted, got = _value(block, {key: x}), _value(folded, {key: x})
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert len(calls) == 1


def test_numbers_of_the_first_block_are_not_those_of_the_second() -> None:
    """What the test above could miss: a replay that keeps what its structure was met with."""
    decisions = Decisions()
    first, second = _block("a"), _block("a")
    shadow, replay = decisions.stand_in(first)
    decisions.stand_in(second)
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    got = _value(replay.run(decisions.rewrite(shadow)), {"a": x})
    torch.testing.assert_close(got, _value(first, {"a": x}), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(got, _value(second, {"a": x}))


def test_the_same_change_of_layout_is_decided_once() -> None:
    """Its function is made anew for each call of the network."""

    def lays_out(order: list[int], **more: object) -> Operator:
        turned = Resample(partial(torch.permute, dims=order, **more), 0, source_rank=2)
        return sequence(Input("x"), _conv(_AXES), turned)

    decisions = Decisions()
    one, other, third = (lays_out(order) for order in ([0, 2, 3, 1], [0, 2, 3, 1], [0, 3, 2, 1]))
    shadow, _ = decisions.stand_in(one)
    same, replay = decisions.stand_in(other)
    assert same is shadow
    assert decisions.stand_in(third)[0] is not shadow
    assert decisions.stand_in(lays_out([0, 2, 3, 1], input=None))[0] is not shadow
    x = torch.randn(1, 2, 4, 3)
    got = _value(replay.run(decisions.rewrite(shadow)), {"x": x})
    torch.testing.assert_close(got, _value(other, {"x": x}))


def _mixed(one: str, other: str) -> Sum:
    return Sum((sequence(Input(one), _norm(4)), sequence(Input(other), _norm(4))))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (_block("a"), _block("a", groups=2)),
        (_block("a"), _block("a", mode="reflect")),
        (_block("a"), _block("a", channels=6)),
        (_mixed("a", "a"), _mixed("a", "b")),
        (_norm(4), replace(_norm(4), shift=None)),
        (_norm(4), Affine(torch.ones(4), torch.ones(4))),
        (Input("a", 3), Input("a", 4)),
        (_conv(_AXES), _conv((_AXES[0], Axis(3)))),
    ],
    ids=["groups", "mode", "channels", "sources", "shift", "dtype", "known", "padding"],
)
def test_what_rules_see_tells_structures_apart(one: Operator, other: Operator) -> None:
    assert structure(one, {}) != structure(other, {})
    assert structure(one, {}) == structure(one, {})
