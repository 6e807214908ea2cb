"""Layers and norms that run on every level of a pyramid fold once, for all of their calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.traps import gap, images, live

EXACT = 1e-10


def levels(x: Tensor) -> list[Tensor]:
    return [x, F.max_pool2d(x, 2), F.avg_pool2d(x, 3)]


class Heads(nn.Module):
    """Layers and norms, and how they run on three levels."""

    def __init__(self, run: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.other, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.run = run

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def one_head(net: nn.Module, x: Tensor) -> object:
    return [F.relu(net.norm(net.conv(y))) for y in levels(x)]


def two_layers(net: nn.Module, x: Tensor) -> object:
    found = []
    for y in levels(x):
        y = F.relu(net.norm(net.conv(y)), inplace=True)
        found.append(torch.sigmoid(net.second(net.other(y))))
    return found


def one_norm_of_two(net: nn.Module, x: Tensor) -> object:
    a, b, c = levels(x)
    return F.relu(net.norm(net.conv(a))), net.norm(net.other(b)), net.norm(net.conv(c))


def its_own_sizes(net: nn.Module, x: Tensor) -> object:
    return [net.norm(net.conv(y)).flatten(2).softmax(-1) for y in levels(x)]


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in model.modules())


@pytest.mark.parametrize(
    ("run", "left"), [(one_head, 1), (two_layers, 0), (one_norm_of_two, 1), (its_own_sizes, 1)]
)
def test_a_norm_goes_into_the_layers_that_it_always_follows(
    run: Callable[[nn.Module, Tensor], object], left: int
) -> None:
    model = live(Heads(run))
    folded = refold.reparameterize(model, images(2, 3, 12, 12))

    assert norms(folded) == left  # the ones that nothing calls

    for x in (images(2, 3, 12, 12), 20 * images(1, 3, 15, 9, seed=3)):
        assert gap(model, folded, x) < EXACT


def also_read_between(net: nn.Module, x: Tensor) -> object:
    found = [net.conv(y) for y in levels(x)]
    return [net.norm(y) for y in found], found[0].relu()


def once_without(net: nn.Module, x: Tensor) -> object:
    return [net.norm(net.conv(y)) for y in levels(x)], net.conv(x)


def once_behind_no_layer(net: nn.Module, x: Tensor) -> object:
    return net.norm(net.conv(x)), net.norm(x.relu())


def weight_read(net: nn.Module, x: Tensor) -> object:
    return [net.norm(net.conv(y)) for y in levels(x)], F.conv2d(x, net.conv.weight)


@pytest.mark.parametrize(
    "run", [also_read_between, once_without, once_behind_no_layer, weight_read]
)
def test_where_one_call_does_not_fit_all_stay(
    run: Callable[[nn.Module, Tensor], object],
) -> None:
    """The control: folding the other calls alone would change this one."""
    model, x = live(Heads(run)), images(2, 3, 12, 12)
    folded = refold.reparameterize(model, x)
    assert norms(folded) == norms(model)
    assert gap(model, folded, x) == 0
    assert any("called" in kept.reason for kept in refold.plan(model, x).refusals)


def test_hooks_keep_a_repeated_norm() -> None:
    model, x = live(Heads(one_head)), images(2, 3, 12, 12)
    model.norm.register_forward_hook(lambda module, given, made: made + 1)
    folded = refold.reparameterize(model, x)
    assert norms(folded) == 2
    assert gap(model, folded, x) == 0
