"""Sizes without example inputs: sums that may broadcast, constants that may add channels.

Oracle: the model itself, on maps of several sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graph.graphs import lifter, nodes
from helpers.traps import conv, gap, live, net
from refold import plan, reparameterize
from refold.graph.lift.same_shape import (
    are_even,
    channels_of,
    have_same_places,
    surely_alike,
)

Norm = nn.BatchNorm2d


def layers(model: nn.Module) -> int:
    kinds = (nn.modules.conv._ConvNd, nn.Linear, Norm, nn.AvgPool2d)
    return sum(isinstance(module, kinds) for module in model.modules())


def folded(model: nn.Module, channels: int = 4) -> list[nn.Module]:
    """Return what the model folds to without and with growth, each equal on several sizes."""
    model, made = live(model), []
    for grow in (False, True):
        made.append(reparameterize(model, allow_growth=grow))
        for size in ((1, 1), (3, 3), (4, 7), (8, 8)):
            x = torch.randn(2, channels, *size, dtype=torch.float64)
            try:
                with torch.no_grad():
                    model(x)
            except RuntimeError:  # a map too small for the model itself
                continue
            assert gap(model, made[-1], x) <= 1e-9
    return made


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def scale(size: int = 4) -> nn.Parameter:
    return nn.Parameter(torch.linspace(0.5, 2, size).view(size, 1, 1).double())


def wide(channels: int, padding: int = 0) -> nn.Conv2d:
    return nn.Conv2d(channels, 4, 3, padding=padding)


UNEVEN: list[tuple[Callable[..., Tensor], dict[str, nn.Module]]] = [
    (lambda s, x: s.p(s.c(x) + s.d(mean(x))), {"p": nn.AvgPool2d(2)}),
    (lambda s, x: s.p(s.c(x) + s.d(F.adaptive_avg_pool2d(x, 1))), {"p": wide(4)}),
    (lambda s, x: s.p(s.d(x) - s.c(mean(x))), {"p": wide(4)}),
    (lambda s, x: s.p(s.c(x.relu()) + s.d(mean(x.relu()))), {"p": wide(4)}),
    (lambda s, x: s.p(torch.add(s.c(x), s.d(x[:, :, :1]))), {"p": wide(4)}),
    (lambda s, x: s.p(s.c(x) + s.n(x)), {"p": wide(4), "n": conv(4, 1, 1)}),
    (lambda s, x: s.p(sum([s.c(x), s.d(x), s.d(mean(x))])), {"p": wide(4)}),
]


@pytest.mark.parametrize(("forward", "parts"), UNEVEN)
def test_what_follows_a_sum_that_may_broadcast_is_given_to_no_branch(forward, parts) -> None:
    made = folded(net(forward, c=conv(4, 4, 1), d=conv(4, 4, 1), **parts))
    assert all(layers(model) >= 3 for model in made)


def test_the_plan_tells_why_a_sum_stays() -> None:
    found = plan(live(net(UNEVEN[0][0], c=conv(4, 4, 1), d=conv(4, 4, 1), p=nn.AvgPool2d(2))))
    assert any("whether the sum broadcasts" in refusal.reason for refusal in found.refusals)


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.c2(s.c(x) * s.g),
        lambda s, x: s.c2(s.c(x) + s.g),
        lambda s, x: s.c2(s.g - s.c(x)),
        lambda s, x: s.c2(s.c(x).relu() / s.g),
        lambda s, x: s.c2((s.c(x) + s.c(x.relu())) * s.g),
        lambda s, x: s.c2(x[:, :1] * s.g),
    ],
)
def test_a_constant_that_may_add_channels_is_no_scale(forward) -> None:
    folded(net(forward, c=conv(4, 1, 1), c2=conv(4, 4), g=scale()))


def test_a_constant_that_adds_channels_to_the_input_is_no_scale() -> None:
    folded(net(lambda s, x: s.c2(x * s.g), c2=conv(4, 4), g=scale()), channels=1)


EVEN: list[Callable[..., Tensor]] = [
    lambda s, x: s.n(s.k(x) + s.c(x) + x),
    lambda s, x: s.n(x) + s.c(x) + s.k(x),
    lambda s, x: sum([s.k(x), s.c(x), s.n(x)]),
    lambda s, x: torch.add(s.k(x), s.c(x), alpha=2) + s.n(x),
    lambda s, x: s.k(x) + s.p(s.c(x)),
    lambda s, x: s.k(s.c(x)) + s.v(F.pad(x, (1, 1, 1, 1))) + x,
    lambda s, x: s.w(x) + s.k(x)[:, :, 1:-1, 1:-1],
    lambda s, x: s.t(x) + s.u(x),
    lambda s, x: s.n(s.k(x) * s.g + s.c(x)),
    lambda s, x: s.k(x) + s.c(s.n(x) + x) - x,
]


@pytest.mark.parametrize("forward", EVEN)
def test_branches_on_one_value_that_leave_as_many_positions_merge(forward) -> None:
    parts = {"c": conv(4, 4, 1, bias=False), "k": conv(4, 4), "n": Norm(4), "g": scale()}
    parts |= {"p": nn.AvgPool2d(3, 1, 1), "v": wide(4), "w": wide(4)}
    parts |= {name: nn.ConvTranspose2d(4, 4, 2, 2) for name in "tu"}
    named = {name: part for name, part in parts.items() if name in forward.__code__.co_names}
    assert layers(folded(net(forward, **named))[1]) == 1


def test_a_sum_stays_even_when_its_evidence_was_folded_away() -> None:
    model = net(lambda s, x: x + s.n(s.c(x)), c=conv(4, 4, 1), n=Norm(4))
    found = lifter(live(model))
    total, values = nodes(found)["add"], tuple(nodes(found)["add"].all_input_nodes)
    assert are_even(found, total, values)
    found.capture.module.c = nn.MaxPool2d(1)  # of which the graph tells nothing
    assert are_even(found, total, values)
    del total.meta["even"]
    assert not are_even(found, total, values)


@pytest.mark.parametrize(
    ("forward", "rank", "count"),
    [
        (lambda s, x: s.c(x).relu(), 2, 5),
        (lambda s, x: s.c(x) * 2 + 1, 2, 5),
        (lambda s, x: s.one(x) + s.c(x), 2, 5),
        (lambda s, x: s.one(x) + mean(s.one(x)), 2, None),
        (lambda s, x: s.one(x) * s.g, 2, 4),
        (lambda s, x: s.l(x.permute(0, 2, 3, 1)), 0, 6),
        (lambda s, x: mean(x), 2, None),
    ],
)
def test_channels_are_told_by_layers_and_wide_constants(forward, rank: int, count) -> None:
    layers = {"c": conv(4, 5), "one": conv(4, 1), "l": nn.Linear(4, 6)}
    found = lifter(live(net(forward, **layers, g=scale())))
    value = nodes(found)["output"].args[0]
    assert channels_of(found, value, rank) == count


@pytest.mark.parametrize(
    ("forward", "places", "shape"),
    [
        (lambda s, x: (s.c(x), s.d(x)), True, True),
        (lambda s, x: (s.c(x), s.one(x)), True, False),
        (lambda s, x: (s.c(x), s.n(x)), False, False),
        (lambda s, x: (s.c(s.l(x)), s.d(x)), False, False),  # its last axis are columns
        (lambda s, x: (s.c(s.d(x).relu()), x.relu()), True, True),
    ],
)
def test_places_are_compared_apart_from_channels(forward, places: bool, shape: bool) -> None:
    layers = {"c": conv(4, 4, 1), "d": conv(4, 4, 1), "one": conv(4, 1, 1), "l": nn.Linear(9, 1)}
    found = lifter(live(net(forward, **layers, n=wide(4))), torch.randn(2, 4, 9, 9).double())
    terms = tuple(nodes(found)["output"].args[0])
    assert have_same_places(found, terms) is places
    assert surely_alike(found, terms) is shape
