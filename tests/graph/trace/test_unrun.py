"""Parts that no recorded call runs: listed, and left out on request."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import refold
from helpers.traps import live

X = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class WithHead(nn.Module):
    """A head for training, a weight that is read without a call, a spare layer in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.aux = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.read = nn.Conv2d(4, 5, 1, bias=False)
        self.steps = nn.ModuleList([nn.Conv2d(5, 5, 1), nn.Conv2d(5, 6, 1)])
        self.empty = nn.Identity()

    def forward(self, x: torch.Tensor) -> Any:
        y = self.body(x)
        z = self.steps[0](nn.functional.conv2d(y, self.read.weight))
        return (z, self.aux(y)) if self.training else z


class Asking(WithHead):
    """The same, asking for numbers on the way: the reading happens in code that is not followed."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x if x.abs().sum() > 0 else -x)


@pytest.mark.parametrize("make", [WithHead, Asking])
@pytest.mark.parametrize("example", [X, None])
def test_what_does_not_run_is_listed(make: type[nn.Module], example: Any) -> None:
    plan = refold.plan(live(make()), example)
    assert plan.unrun == ("aux", "steps.1")
    assert "no recorded call runs it" in str(plan)
    assert plan.to_dict()["unrun"] == ["aux", "steps.1"]


def test_it_goes_on_request_and_only_then() -> None:
    model = live(WithHead())
    kept, dropped = (
        refold.reparameterize(model, X),
        refold.reparameterize(model, X, drop_unused=True),
    )
    assert isinstance(kept.aux, nn.Sequential)
    assert dropped.aux is None
    assert isinstance(dropped.steps[1], nn.Identity)
    assert torch.equal(kept(X), dropped(X))
    torch.testing.assert_close(dropped(X), model(X), rtol=1e-10, atol=1e-10)
    assert isinstance(model.aux, nn.Sequential)  # the caller's stays


def test_the_plan_says_what_it_made_up() -> None:
    model = live(WithHead())
    assert refold.plan(model, X).made_up == ()
    plan = refold.plan(model)
    assert plan.made_up == ((2, 3, 64, 64),)
    assert plan.summary().endswith("recorded on an input made up for it, 2x3x64x64")


class Scaled(nn.Module):
    """Reads the gain of a part that it never calls, in a product whose result is plain to see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.part = nn.Conv2d(3, 4, 3), nn.Module()
        self.part.gain = nn.Parameter(torch.tensor([0.5, -2.0, 1.5, 3.0]).view(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu() * self.part.gain


def test_a_weight_that_is_only_multiplied_with_is_read() -> None:
    net = live(Scaled())
    assert refold.plan(net, X).unrun == ()
    folded = refold.reparameterize(net, X, drop_unused=True)
    torch.testing.assert_close(folded(X), net(X), rtol=1e-9, atol=1e-9)
