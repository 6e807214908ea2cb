"""Containers that have a forward of their own are networks like any other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import refold
from helpers.traps import live

X = torch.randn(2, 3, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Chain(nn.ModuleList):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self:
            x = part(x)
        return x


class Getter(nn.ModuleDict):
    """What torchvision's getter of layers does."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        for name, part in self.items():
            x = part(x)
            if name == "act":
                found["out"] = x
        return found


def parts() -> list[nn.Module]:
    return [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()]


MAKE = {
    "list": lambda: Chain(parts()),
    "dict": lambda: Getter(dict(zip(("conv", "norm", "act"), parts(), strict=True))),
    "within": lambda: nn.Sequential(Chain(parts()), Chain([nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)])),
}


@pytest.mark.parametrize("example", [X, None])
@pytest.mark.parametrize("kind", MAKE)
def test_no_norm_is_left_in_silence(kind: str, example: torch.Tensor | None) -> None:
    model = live(MAKE[kind]())
    folded = refold.reparameterize(model, example)
    assert not [part for part in folded.modules() if isinstance(part, nn.BatchNorm2d)]
    for x in (X, X[:1, :, 2:]):
        wanted, got = model(x), folded(x)
        if kind == "dict":
            wanted, got = wanted["out"], got["out"]
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_a_plain_list_is_no_part_of_the_account() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(parts())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Chain.forward(self.parts, x)

    plan = refold.plan(live(Net()), X)
    assert plan.kept == ()
    assert len(plan.steps) == 1
