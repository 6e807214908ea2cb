"""A step is undone as well where no run of the whole model would show that it is wrong.

Faults are planted in a rule, in the editor, and in what a new layer reads.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import refold
from helpers.traps import conv, images, live
from refold.graph import Editor
from refold.rules import norm

pytestmark = pytest.mark.slow

Plant = Callable[[pytest.MonkeyPatch], None]


class Branches(nn.Module):
    """Two layers with norms, an activation, and one more."""

    def __init__(self, inputs: int = 3) -> None:
        super().__init__()
        self.a, self.na = conv(inputs, 4), nn.BatchNorm2d(4)
        self.b, self.nb, self.act = conv(inputs, 4, 1), nn.BatchNorm2d(4), nn.GELU()
        self.last, self.nl = conv(4, 4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.nl(self.last(self.act(self.na(self.a(x)) + self.nb(self.b(x)))))


class TwoInputs(nn.Module):
    """Nobody can make up what it takes: its parts are recorded one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Branches(), Branches()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.left(x) - self.right(y)


class WithHead(nn.Module):
    """Its head runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(conv(3, 4), nn.ReLU()), Branches(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(y) if self.training else y


class Dice(nn.Module):
    """Its own code draws numbers of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Branches()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * random.random()


def wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule that scales a layer's outputs is off by a thousandth."""
    right = norm.scale_rows

    def planted(weight: Tensor, factors: Tensor, *rest: Any, **options: Any) -> Tensor:
        return right(weight, factors * 1.001, *rest, **options)

    monkeypatch.setattr(norm, "scale_rows", planted)


def dropped_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads an activation behind a new value reads the value itself."""
    right = Editor.replace

    def planted(self: Editor, node: fx.Node, new: fx.Node) -> None:
        right(self, node, new)
        for user in list(new.users):
            if user.target == "act" or str(user.target).endswith(".act"):
                self.bypass(user, new)

    monkeypatch.setattr(Editor, "replace", planted)


def wrong_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new layer reads its input the wrong way up."""
    right = Editor.insert_module

    def planted(self: Editor, module: nn.Module, nodes: Any, **options: Any) -> fx.Node:
        [value] = nodes
        turned = self.insert_function(torch.flip, (value, [2]), before=options["before"])
        return right(self, module, [turned], **options)

    monkeypatch.setattr(Editor, "insert_module", planted)


FAULTS: dict[str, Plant] = {"rule": wrong_rule, "node": dropped_node, "wire": wrong_wire}
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], bool]] = {
    "a whole model": (Branches, ("",), True),
    "a whole model without an example": (Branches, ("",), False),
    "parts of a model that takes two inputs": (TwoInputs, ("left", "right"), False),
    "a part that does not run": (WithHead, ("head",), True),
    "a part of code that draws numbers": (Dice, ("inner",), True),
}


def off(net: nn.Module, other: nn.Module, parts: tuple[str, ...]) -> float:
    """Return the largest relative error of the parts of two networks."""
    worst = 0.0
    for part in parts:
        one, two = net.get_submodule(part), other.get_submodule(part)
        x = images(2, next(one.parameters()).shape[1], 7, 6)
        with torch.no_grad():
            wanted, got = one(x), two(x)
        worst = max(worst, float((wanted - got).abs().max() / wanted.abs().max()))
    return worst


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("make", NETS)
def test_a_planted_fault_is_undone(monkeypatch: pytest.MonkeyPatch, make: str, fault: str) -> None:
    build, parts, is_given = NETS[make]
    net = live(build())
    example = images() if is_given else None
    FAULTS[fault](monkeypatch)
    assert off(net, refold.reparameterize(net, example, check=False), parts) > 1e-6
    plan = refold.plan(net, example)
    assert off(net, plan.apply(), parts) <= 1e-9
    assert any("undone" in kept.reason for kept in plan.kept)


@pytest.mark.parametrize("make", NETS)
def test_without_a_fault_nothing_is_undone(make: str) -> None:
    build, parts, is_given = NETS[make]
    net = live(build())
    plan = refold.plan(net, images() if is_given else None)
    assert off(net, plan.apply(), parts) <= 1e-9
    assert not any("undone" in kept.reason for kept in plan.kept)
    assert len(plan.steps) >= 2


def test_a_part_in_single_precision_is_not_undone() -> None:
    net = live(TwoInputs()).float()
    assert not any("undone" in kept.reason for kept in refold.plan(net).kept)
