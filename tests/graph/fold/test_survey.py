"""What was not folded, and why: one entry for each place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

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


def rows(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


LONELY: dict[str, tuple[Callable[..., Tensor], dict[str, str]]] = {
    "functions behind what it may pass": (
        lambda self, x: rows(self.b(x))[:, :3].softmax(1),
        {"b": "it comes from x and goes to softmax through flatten, transpose, getitem"},
    ),
    "functions on both sides of pools": (
        lambda self, x: nn.functional.avg_pool2d(self.b(self.p(x.relu())), 2).relu(),
        {"b": "it comes from relu through p and goes to relu through avg_pool2d"},
    ),
    "a turn that moves the channels": (
        lambda self, x: self.b(x).transpose(1, 2)[:, :3].softmax(1),
        {"b": "it comes from x and goes to transpose"},
    ),
    "a dropped path": (
        lambda self, x: self.i(self.b(self.i(self.d(x.relu())))).relu(),
        {"b": "it comes from relu and goes to relu"},
    ),
    "a layer that has to stay": (
        lambda self, x: self.b(self.s(self.s(x))).relu(),
        {
            "s": "the module is called 2 times",
            "b": "it comes from s, but the module is called 2 times, and goes to relu",
        },
    ),
}


@pytest.mark.parametrize("name", LONELY)
def test_a_norm_says_where_its_ways_end(name: str) -> None:
    forward, wanted = LONELY[name]
    layers = {"p": nn.AvgPool2d(2), "d": nn.Dropout(), "i": nn.Identity(), "s": conv(3, 3)}
    found = reasons(net(forward, b=Norm(3), **layers))
    assert {place: reason.rpartition(": ")[2] for place, reason in found.items()} == wanted


REFUSED: dict[str, tuple[Callable[..., Tensor], str, str]] = {
    "a convolution behind a turn": (
        lambda self, x: self.c(self.b(x).transpose(2, 3)),
        "b + c",
        "a shift meets the convolution's zero padding",
    ),
    "a pool on the way on": (
        lambda self, x: self.c(self.p(self.b(x))),
        "b + p",
        "a constant meets the border zeros that the pool counts",
    ),
    "a pool on the way back": (
        lambda self, x: self.b(self.p(self.c(x)).flip(3)).relu(),
        "p + b",
        "a constant meets the border zeros that the pool counts",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_norm_says_who_refuses_it_on_its_way(name: str) -> None:
    forward, where, reason = REFUSED[name]
    found = reasons(net(forward, b=Norm(3), c=conv(3, 3), p=nn.AvgPool2d(3, 1, 1)))
    assert found[where].startswith(reason)
    assert "b" not in found


def test_a_value_that_others_read_is_found_behind_what_the_norm_may_pass() -> None:
    def forward(self, x):
        y = self.c(x)
        return self.b(y.flip(3)).relu() + y

    found = reasons(net(forward, c=conv(), b=Norm(4)))
    assert found["b"] == "the value of c is also read by add"


def test_readers_that_do_not_take_a_norm_in_say_why() -> None:
    def forward(self, x):
        y = self.b(x).transpose(2, 3)
        return self.c(self.p(y)).relu() + self.d(y)

    layers = {"c": conv(3, 3), "d": conv(3, 3, 1), "p": nn.AvgPool2d(3, 1, 1)}
    found = reasons(net(forward, b=Norm(3), **layers))
    why = "a constant meets the border zeros that the pool counts"
    assert found["b"] == f"not all of its readers take it in: c, since {why}"
