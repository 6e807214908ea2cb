"""What was not folded, and why: one entry for each place."""

from __future__ import annotations

import pytest
from torch import nn

from helpers.traps import conv, images, live, net
from refold import plan

Norm = nn.BatchNorm2d


def reasons(model: nn.Module, **options) -> dict[str, str]:
    refusals = plan(live(model), images(), **options).refusals
    assert len({kept.where for kept in refusals}) == len(refusals)
    return {kept.where: kept.reason for kept in refusals}


def test_nothing_is_said_about_what_folds_or_is_not_affine() -> None:
    model = nn.Sequential(conv(), Norm(4), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 4))
    assert reasons(model) == {}


def test_norm_between_nonlinearities() -> None:
    found = reasons(nn.Sequential(nn.ReLU(), Norm(3), nn.ReLU()))
    assert found == {"1": "no neighbour takes it in: it comes from 0 and goes to 2"}


def test_norm_of_a_value_that_others_read() -> None:
    def forward(self, x):
        y = self.c(x)
        return self.b(y).relu() + y

    found = reasons(net(forward, c=conv(), b=Norm(4)))
    assert found["b"] == "the value of c is also read by add"


@pytest.mark.parametrize(
    ("model", "where", "reason"),
    [
        (nn.Sequential(Norm(3), conv()), "0 + 1", "zero padding"),
        (nn.Sequential(conv(3, 5, 1), conv(5, 4)), "0 + 1", "a bias meets"),
        (nn.Sequential(conv(), nn.AvgPool2d(3, 2, ceil_mode=True), Norm(4)), "1", "ceil_mode"),
        (nn.Sequential(conv(), Norm(4, track_running_stats=False)), "1", "no running statistics"),
    ],
)
def test_refusals_name_the_layers(model: nn.Module, where: str, reason: str) -> None:
    assert reason in reasons(model)[where]


def test_calls_inside_a_module_are_named_by_it() -> None:
    inner = net(lambda self, x: self.a(x) + self.b(x), a=conv(padding_mode="reflect"), b=conv())
    found = reasons(net(lambda self, x: self.block(x).relu(), block=inner))
    assert found == {"block.a + block.b": "branches pad differently: ['reflect', 'zeros']"}


def test_costlier_merges_are_marked_and_vanish_when_growth_is_allowed() -> None:
    model = net(lambda self, x: self.a(x) + self.b(x), a=conv(3, 3, groups=3), b=conv(3, 3, 1))
    [kept] = plan(live(model), images()).refusals
    assert kept.costlier
    assert reasons(model, allow_growth=True) == {}


def test_parts_that_could_not_be_traced() -> None:
    class ByData(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = conv()

        def forward(self, x):
            return self.c(x) if x.sum() > 0 else x

    found = reasons(nn.Sequential(conv(3, 3), ByData()))
    assert "asks for numbers" in found["1"]
