"""Values that change in place: a fold may read them where no change lies between its calls.

Oracle: the network itself in float64, at two sizes. Control: the same fold, told that nothing is
written between its calls, gives other numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.nightly import some
from helpers.traps import EXACT, WRONG, live
from refold.graph.trace.aliases import AliasGroups

Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.n, self.c = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.d, self.code = nn.Conv2d(4, 4, 1), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def image(*size: int) -> Tensor:
    return torch.randn(2, 4, *size, dtype=torch.float64, generator=torch.manual_seed(sum(size)))


def error(model: nn.Module, folded: nn.Module, size: tuple[int, int]) -> float:
    with torch.no_grad():
        want, got = model(image(*size)), folded(image(*size))
    return float((want - got).abs().max() / want.abs().max())


def before(net: Net, x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] = 1
    return net.c(net.n(y)) + y


def after(net: Net, x: Tensor) -> Tensor:
    y = x * 2
    z = net.c(net.n(y))
    y += z
    return y


def around(net: Net, x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:].mul_(3)
    z = net.c(y) + net.d(net.n(y))
    y.zero_()
    return z + y


def of_the_input(net: Net, x: Tensor) -> Tensor:
    z = net.c(net.n(x))
    x[:, 0] = 1
    return z + x


@pytest.mark.parametrize("forward", some([before, after, around, of_the_input], keep=3))
def test_a_change_before_or_behind_is_in_no_ones_way(forward: Forward) -> None:
    model = live(Net(forward))
    folded = refold.reparameterize(model, image(5, 6))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert max(error(model, folded, size) for size in ((5, 6), (3, 4))) <= EXACT


def between(net: Net, x: Tensor) -> Tensor:
    y = x * 2
    z = net.n(y)
    y[:, 0] = 1
    return net.c(z) + y


def between_by_a_view(net: Net, x: Tensor) -> Tensor:
    y = x * 2
    rest, z = y[:, 1:], net.n(y)
    rest.mul_(3)
    return net.c(z) + y


def between_branches(net: Net, x: Tensor) -> Tensor:
    y = x * 2
    z = net.c(y)
    y.relu_()
    return z + net.d(net.n(y)) + y


@pytest.mark.parametrize("forward", some([between, between_by_a_view], keep=2))
def test_a_change_between_is(forward: Forward, monkeypatch: pytest.MonkeyPatch) -> None:
    model = live(Net(forward))
    plan = refold.plan(model, image(5, 6))
    assert any("in place while n reads it" in kept.reason for kept in plan.kept)
    folded = refold.reparameterize(model, image(5, 6))
    assert error(model, folded, (5, 6)) <= EXACT
    monkeypatch.setattr(AliasGroups, "is_written", lambda *args, **options: False)
    naive = refold.reparameterize(model, image(5, 6), check=False)
    assert error(model, naive, (5, 6)) > WRONG


def test_branches_that_read_before_and_behind_a_change_stay_two() -> None:
    model = live(Net(between_branches))
    folded = refold.reparameterize(model, image(5, 6))
    assert sum(isinstance(part, nn.Conv2d) for part in folded.modules()) == 2
    assert max(error(model, folded, size) for size in ((5, 6), (3, 4))) <= EXACT
