"""Scales around a flattened map: the map may have any size, before a fold and after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.traps import gap, images, live, net, norms
from refold.engine import simplify

EXACT = 1e-9
FORWARDS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "twice": lambda self, x: self.norm(x).flatten(1) * 2,
    "negated": lambda self, x: -self.norm(x).flatten(1),
    "shifted": lambda self, x: self.norm(x).flatten(1) + 1,
    "viewed": lambda self, x: self.norm(x).view(x.shape[0], -1) / 3,
    "convolved": lambda self, x: self.norm(self.conv(x)).flatten(1) * 2,
    "rows and maps": lambda self, x: self.norm((x.flatten(1) * 2).view(x.shape)),
    "pooled": lambda self, x: self.pool(self.norm(x)).flatten(1) * 2,
}


class Row(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.run, self.pool = FORWARDS[name], nn.AdaptiveAvgPool2d(2)
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def largest_gap(model: nn.Module, folded: nn.Module) -> float:
    return max(gap(model, folded, images(2, 4, *sides)) for sides in ((8, 8), (5, 9), (1, 3)))


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("given", [True, False])
def test_other_sizes_are_exact(name: str, given: bool) -> None:
    model = live(Row(name))
    folded = refold.plan(model, images(2, 4, 8, 8) if given else None).apply()
    assert largest_gap(model, folded) <= EXACT
    count = sum(p.numel() for p in folded.parameters())
    assert count <= sum(p.numel() for p in model.parameters()) + 8


def test_the_control_is_bound_to_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplify, "fixes_size", lambda parts: False)
    model = live(Row("twice"))
    folded = refold.reparameterize(model, images(2, 4, 8, 8))
    with pytest.raises(RuntimeError, match="must match"):
        folded(images(2, 4, 5, 5))


def test_a_linear_layer_that_knows_the_size_takes_the_norm_in() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.last(self.norm(x).flatten(1) * 2)

    model = live(net(forward, norm=nn.BatchNorm2d(4), last=nn.Linear(4 * 6, 3)))
    x = images(2, 4, 2, 3)
    folded = refold.reparameterize(model, x)
    assert norms(folded) == 0
    assert gap(model, folded, x) <= EXACT


class Spreads(nn.Module):
    """Hands on as many sizes as its input has: `*x.shape[2:]`."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 5, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 0.5 + x * 0.5
        z = y.view(y.size(0), 1, -1, *y.shape[2:]).flatten(1, 2)
        return torch.cat([y, z], 1), self.last(x.transpose(1, -1))


def test_an_input_made_up_says_nothing_of_the_rank() -> None:
    model = live(Spreads())
    folded = refold.plan(model).apply()
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5)):
        x = images(*shape)
        for ours, theirs in zip(folded(x), model(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=EXACT, atol=1e-12)


class Unbatched(nn.Module):
    """Its first made-up input is one image: 2 channels, no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = nn.ConvTranspose2d(1, 6, 3)
        self.conv = nn.Conv2d(2, 3, 3)
        self.factor = nn.Parameter(torch.rand(2, 3))  # says nothing of the channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.relu()
        w = self.factor[:, :1, None] - y * 0.5
        self.unread(w.narrow(1, 0, 1))
        z = self.conv(y.relu())
        return F.interpolate(z, size=tuple(z.size()[2:])), 1 - w


def test_an_image_made_up_without_a_batch_says_nothing_of_the_rank() -> None:
    model = live(Unbatched())
    plan = refold.plan(model)
    assert plan.made_up == ((2, 3, 64),)
    folded = plan.apply()
    x = images(2, 2, 7, 6)
    for ours, theirs in zip(folded(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=EXACT, atol=1e-12)


class Halved(nn.Module):
    """Its layers read half of the channels; (2, 8) runs as well, spread over `offset`."""

    def __init__(self, gain: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(gain), nn.Parameter(offset)
        self.conv, self.norm, self.side = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gain = self.gain if self.gain.ndim == 1 else self.gain[:, 0]
        offset = self.offset if self.offset.ndim == 4 else self.offset[:, 0].view(1, -1, 1, 1)
        y = x * gain.view(1, -1, 1, 1) + offset
        half = y.chunk(2, 1)[1]
        return y.view(len(y), -1), self.norm(self.conv(half)) + self.side(half)


GAIN, OFFSET = torch.linspace(-1, 2, 6), torch.linspace(2, -3, 6)
STORED = {
    "a map of one position": (torch.stack([GAIN, GAIN], 1), OFFSET.view(1, 6, 1, 1)),
    "a row": (GAIN, torch.stack([OFFSET, OFFSET], 1)),
    "nothing": (torch.stack([GAIN, GAIN], 1), torch.stack([OFFSET, OFFSET], 1)),
}


@pytest.mark.parametrize("stored", STORED)
def test_an_input_is_not_made_up_with_fewer_axes_than_stored_tensors_ask_for(stored: str) -> None:
    model = live(Halved(*STORED[stored]))
    plan = refold.plan(model)
    assert plan.made_up == (() if stored == "nothing" else ((2, 6, 64, 64),))
    folded = plan.apply()
    assert norms(folded) == (1 if stored == "nothing" else 0)
    for shape in ((2, 6, 5, 4), (3, 6, 2, 8)):
        x = images(*shape)
        for ours, theirs in zip(folded(x), model(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=EXACT, atol=1e-12)
