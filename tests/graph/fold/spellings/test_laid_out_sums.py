"""Sums of values that are laid out alike are laid out once, and their branches merge.

Oracle: the network itself in float64, at three sizes. Control: a sum of the maps is another
function (or none) where the two are laid out differently, and there both layers stay.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.nightly import some
from helpers.traps import EXACT, live

Lay = Callable[[Tensor], Tensor]
LAYOUTS: list[Lay] = [
    lambda y: y.flatten(2),
    lambda y: y.flatten(2).transpose(1, 2),
    lambda y: y.permute(0, 2, 3, 1),
    lambda y: y.permute(0, 2, 3, 1).reshape(y.shape[0], -1, 8),
    lambda y: y.view(y.size(0), y.size(1), -1),
    lambda y: torch.flatten(y, start_dim=1),
    lambda y: y.unflatten(1, (2, 4)),
    lambda y: y.unsqueeze(2),
]


def branch(kernel: int, stride: int, groups: int) -> nn.Module:
    layer = nn.Conv2d(4, 8, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(8))


class Net(nn.Module):
    """Two branches, laid out each."""

    def __init__(self, one: Lay, other: Lay, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.a, self.b = branch(3, stride, groups), branch(1, stride, groups)
        self.one, self.other, self.join = one, other, operator.add

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.one(self.a(x)), self.other(self.b(x)))


def image(*size: int) -> Tensor:
    noise = torch.Generator().manual_seed(sum(size))
    return torch.randn(2, 4, *size, dtype=torch.float64, generator=noise)


def convs(model: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in model.modules())


def fold(model: nn.Module, sizes: tuple[tuple[int, int], ...] = ((9, 5), (4, 4))) -> nn.Module:
    folded = refold.reparameterize(model, image(7, 8))
    with torch.no_grad():
        for size in ((7, 8), *sizes):
            was, now = model(image(*size)), folded(image(*size))
            assert was.shape == now.shape
            assert float((was - now).abs().max() / was.abs().max()) <= EXACT
    return folded


@pytest.mark.parametrize("lay", some(LAYOUTS, keep=[LAYOUTS[1], LAYOUTS[3], LAYOUTS[4]]))
@pytest.mark.parametrize(("stride", "groups"), some([(1, 1), (2, 2)], keep=1))
def test_a_sum_of_branches_laid_out_alike_is_one_layer(lay: Lay, stride: int, groups: int) -> None:
    model = live(Net(lay, lay, stride, groups))
    assert convs(fold(model)) == 1
    steps = refold.plan(model, image(7, 8)).steps
    assert "lay out a sum once" in [step.rule for step in steps]


def test_sizes_that_one_branch_is_asked_for() -> None:
    class Asked(Net):
        def forward(self, x: Tensor) -> Tensor:
            one, other = self.a(x), self.b(x)
            n, c, h, w = one.shape
            return one.view(n, c, h * w) + other.reshape(n, c, h * w)

    assert convs(fold(live(Asked(LAYOUTS[0], LAYOUTS[0])))) == 1


def test_differences_of_three_terms_and_the_input_itself() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).flatten(2).mul(1) - self.b(x).flatten(2)
            y += x.flatten(2)
            return y

    assert convs(fold(live(Three()))) == 1


def test_branches_that_lay_out_themselves() -> None:
    class Rows(nn.Module):
        def __init__(self, kernel: int) -> None:
            super().__init__()
            self.body = branch(kernel, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).flatten(2).transpose(1, 2)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.ModuleList(map(Rows, (1, 3, 5)))

        def forward(self, x: Tensor) -> Tensor:
            return sum(rows(x) for rows in self.rows)  # type: ignore[return-value]

    assert convs(fold(live(Whole()))) == 1


def test_layouts_that_differ_stay() -> None:
    model = live(Net(lambda y: y.flatten(2), lambda y: y.transpose(2, 3).flatten(2)))
    assert convs(fold(model)) == 2
    assert said(model) == "in ways that differ, or may for another input"


def said(model: nn.Module) -> str:
    reasons = [kept.reason for kept in refold.plan(model, image(7, 8)).kept]
    [reason] = (r for r in reasons if r.startswith("its terms are laid out before they are added"))
    return reason.partition(": ")[2]


def test_terms_with_a_factor() -> None:
    net = live(Net(LAYOUTS[1], LAYOUTS[1]))
    net.join = partial(torch.add, alpha=-3)  # type: ignore[assignment]
    assert convs(fold(net)) == 1


def test_maps_that_only_meet_as_rows_stay() -> None:
    """Turned maps have one number of positions, and one shape on squares alone."""

    class Turned(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.one(self.a(x)) + self.other(self.b(x.transpose(2, 3)))

    model = live(Turned(lambda y: y.flatten(2), lambda y: y.flatten(2)))
    folded = refold.reparameterize(model, image(6, 6))
    assert convs(folded) == 2
    with torch.no_grad():
        x = image(7, 8)
        assert float((model(x) - folded(x)).abs().max()) <= EXACT


def test_a_laid_out_value_that_others_read_stays() -> None:
    class Shared(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            one = self.one(self.a(x))
            return one + self.other(self.b(x)), one

    model = live(Shared(LAYOUTS[0], LAYOUTS[0]))
    folded = refold.reparameterize(model, image(7, 8))
    assert convs(folded) == 2
    assert said(model) == "the value of flatten is also read by output"
    with torch.no_grad():
        for was, now in zip(model(image(7, 8)), folded(image(7, 8)), strict=True):
            assert float((was - now).abs().max()) <= EXACT
