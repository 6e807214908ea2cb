"""Layers and parts called in unusual ways: by name, tried, sliced anew, with other weights.

The oracle is the model itself, in float64, at two sizes.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import EXACT, conv, gap, images, live
from refold import plan

X = images(2, 3, 6, 5)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 4), nn.BatchNorm2d(4)


class ByName(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(input=self.conv(input=x))


class Part(Two):
    """A part that takes no lengths."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Tried(nn.Module):
    """Gives its parts an argument that only some of them take."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Part(), nn.ReLU()])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            try:
                x = part(x, lengths=None)
            except TypeError:
                x = part(x)
        return x


class Grouped(nn.Module):
    """Runs slices of a Sequential, each of them a new one."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        first = self.features[:3](x)
        return self.features[3:](first) + first


class Compiled(Two):
    """Compiles a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.step = torch.compile(self.plain, backend="eager")

    def plain(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


NETS: list[type[nn.Module]] = [
    ByName, Tried, Grouped, pytest.param(Compiled, marks=pytest.mark.slow)
]  # fmt: skip


@pytest.mark.parametrize("make", NETS)
def test_the_norms_fold(make: type[nn.Module]) -> None:
    model = live(make())
    made = plan(model, X)
    folded = made.apply()
    assert not made.kept
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    for x in (X, images(1, 3, 8, 7)):
        assert gap(model, folded, x) <= EXACT


class Lent(Two):
    """Runs a layer once with weights that are not its own."""

    def forward(self, x: Tensor) -> Tensor:
        twice = {"weight": 2 * self.conv.weight}
        return self.norm(torch.func.functional_call(self.conv, twice, (x,)))


def test_a_layer_that_is_lent_other_weights_stays() -> None:
    model = live(Lent())
    made = plan(copy.deepcopy(model), X)
    assert gap(model, made.apply(), X) <= EXACT
    assert "its code calls conv with another weight" in [kept.reason for kept in made.kept]
