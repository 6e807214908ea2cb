"""Layers whose value nobody reads: listed, and left out where that is asked for.

The oracle is the model itself in float64; the control leaves out a call that changes its input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.traps import EXACT, WRONG, gap, images, live
from refold import plan, reparameterize

Run = Callable[[Any, Tensor], Any]


class Gated(nn.Module):
    """A WaveNet's layer: what goes on to the next one, and what goes to the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.on = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.end = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(self.conv(x))
        return (x + self.on(y)) * 0.5, torch.relu(self.end(y))


class Net(nn.Module):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.aux = nn.Conv2d(4, 3, 1)
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.layers = nn.ModuleList([Gated(), Gated()])
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def wave(m: Any, x: Tensor) -> Tensor:
    total = 0
    for layer in m.layers:
        x, end = layer(x)
        total = total + end
    return m.b(total)


GOES: dict[str, tuple[Run, tuple[str, ...]]] = {
    "layer": (lambda m, x: (m.b(m.a(x).tanh()), m.aux(x))[0], ("aux",)),
    "head": (lambda m, x: (m.b(m.a(x).tanh()), m.head(x))[0], ("head.0", "head.1", "head.2")),
    "functions": (lambda m, x: (m.b(x), F.gelu(m.a(x) * 2 + 1))[0], ("a",)),
    "part of a part": (wave, ("layers.1.on",)),
}


@pytest.mark.parametrize("name", GOES)
def test_it_goes_where_that_is_asked_for(name: str) -> None:
    run, gone = GOES[name]
    model, x = live(Net(run)), images(2, 4, 7, 5)
    folded = reparameterize(model, x, drop_unused=True)
    left = {path for path, _ in folded.named_modules()}
    assert left.isdisjoint(gone)
    for other in (x, 30 * x, images(3, 4, 6, 8)):
        assert gap(model, folded, other) <= EXACT
    said = [step.where for step in plan(model, x, drop_unused=True).steps]
    assert set(gone) <= set(said)


@pytest.mark.parametrize("name", ["layer", "part of a part"])
def test_it_stays_and_is_listed_where_not(name: str) -> None:
    run, gone = GOES[name]
    model, x = live(Net(run)), images(2, 4, 7, 5)
    kept = [item for item in plan(model, x).kept if "nobody reads" in item.reason]
    assert {item.where for item in kept} == set(gone)
    assert set(gone) <= {path for path, _ in reparameterize(model, x).named_modules()}


def in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    F.relu_(y)
    return m.b(y)


def stored(m: Any, x: Tensor) -> Tensor:
    m.last = m.head(x)
    return m.b(m.a(x).tanh())


def view_written(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :2].mul_(0)
    return m.b(y)


STAYS: dict[str, Run] = {"in place": in_place, "stored": stored, "a view": view_written}


@pytest.mark.parametrize("name", STAYS)
def test_what_has_an_effect_stays(name: str) -> None:
    model, x = live(Net(STAYS[name])), images(2, 4, 7, 5)
    folded = reparameterize(model, x, drop_unused=True)
    assert gap(model, folded, x) <= EXACT
    if name == "stored":
        torch.testing.assert_close(folded.last, model.last)


def test_a_layer_with_a_hook_stays() -> None:
    model, x = live(Net(GOES["layer"][0])), images(2, 4, 7, 5)
    seen: list[Tensor] = []
    model.aux.register_forward_hook(lambda layer, given, value: seen.append(value))
    folded = reparameterize(model, x, drop_unused=True)
    seen.clear()
    folded(x)
    assert len(seen) == 1


def test_an_effect_left_out_would_show() -> None:
    model, naive = live(Net(in_place)), live(Net(lambda m, x: m.b(m.a(x))))
    naive.load_state_dict(model.state_dict())
    assert gap(model, naive, images(2, 4, 7, 5)) >= WRONG
