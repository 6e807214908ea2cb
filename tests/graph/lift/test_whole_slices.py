"""Slices that take all channels, as GhostNet's modules end in: they go. The model is the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import EXACT, WRONG, gap, images, live
from refold import plan, reparameterize


class Ghost(nn.Module):
    """Half of the channels from a convolution, half from what it gives; some are asked for."""

    def __init__(self, asked: int, places: slice = slice(None)) -> None:
        super().__init__()
        self.asked, self.places = asked, places
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.cheap = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        both = torch.cat([y, self.cheap(y)], 1)
        return both[:, : self.asked, self.places, :].sigmoid()


def slices(model: nn.Module, x: Tensor) -> int:
    nodes = torch.export.export(model, (x,), strict=False).graph.nodes
    return sum(str(node.target) in ("aten.slice.Tensor", "aten.alias.default") for node in nodes)


@pytest.mark.parametrize(
    ("asked", "places", "left"),
    [(8, slice(None), 0), (9, slice(None), 0), (7, slice(None), 1), (8, slice(0, 6), 1)],
)
def test_all_channels_are_no_choice(asked: int, places: slice, left: int) -> None:
    net, x = live(Ghost(asked, places)), images(2, 3, 6, 7)
    folded = reparameterize(net, x)
    assert slices(folded, x) == left
    for size in ((6, 7), (9, 5), (2, 3)):
        assert gap(net, folded, images(2, 3, *size)) <= EXACT


def test_a_careless_look_at_the_size_of_the_example_would_show() -> None:
    net, other = live(Ghost(8, slice(0, 6))), live(Ghost(8))
    other.load_state_dict(net.state_dict())
    assert gap(net, other, images(2, 3, 6, 7)) <= EXACT
    assert gap(net, other, images(2, 3, 9, 7)) > WRONG


class Cut(nn.Module):
    """A slice of channels and of positions in one, beside 1×1 and 3×3 convolutions."""

    def __init__(self, form: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.form = form
        self.six, self.wide = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.three, self.kernel = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3)
        self.norms = nn.Sequential(nn.BatchNorm2d(6), nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)


@pytest.mark.parametrize(
    ("form", "layers"),
    [
        (lambda m, x: m.three(x[:, 1::2, 1:]), 0),  # what is left of the slice is no new layer
        (lambda m, x: m.kernel(x[:, :3, 1:, :-1]), 0),
        (lambda m, x: m.wide(x)[:, 2:5, 1:].relu(), 0),
        (lambda m, x: m.three(m.six(x)[:, 2:5, 1:, 2:]), -1),
        (lambda m, x: m.three(m.wide(x)[:, 1:4, ::2, 1:]), 0),
        (lambda m, x: m.six(torch.cat([x[:, :3, 1:], x[:, 3:, 1:]], 1)), 0),
        (lambda m, x: m.norms(x)[:, ::2, 1::2].sin() + m.six(x)[:, ::2, 1::2].cos(), 0),
    ],
)
def test_a_slice_of_channels_and_positions_is_cut_once(form: Any, layers: int) -> None:
    """A part of a slice may go into a layer; the whole slice must not stay as well."""
    model, x = live(Cut(form)), images(2, 6, 8, 9)
    folded = reparameterize(model, x, check=False)
    assert gap(model, folded, x) <= EXACT
    assert gap(model, folded, images(2, 6, 11, 7)) <= EXACT
    assert not any("defect" in kept.reason for kept in plan(model, x).kept)
    counts = [sum(isinstance(m, nn.Conv2d) for m in net.modules()) for net in (model, folded)]
    assert counts[1] - counts[0] == layers
