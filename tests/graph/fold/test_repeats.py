"""Equal calls of one value are made once.

The oracle is the model itself in float64; the control makes calls one although the value changes
in between.
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


class Net(nn.Module):
    def __init__(self, run: Callable[[Any, Tensor], Any], act: nn.Module | None = None) -> None:
        super().__init__()
        self.run, self.act = run, act or nn.ReLU()
        self.inplace = nn.SiLU(inplace=True)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def calls(model: nn.Module, x: Tensor) -> list[str]:
    nodes = torch.export.export(model, (x,), strict=False).graph.nodes
    return [node.name for node in nodes if node.op == "call_function"]


ONCE: dict[str, tuple[Callable[[Any, Tensor], Any], int]] = {
    "layer": (lambda m, x: m.a(x) + m.a(x), 1),
    "function": (lambda m, x: m.a(F.gelu(x)) + m.b(F.gelu(x)), 2),
    "method": (lambda m, x: m.a(x.tanh()) + m.b(x.tanh()), 2),
    "module": (lambda m, x: m.a(m.act(x)) + m.b(m.act(x)), 2),
    "in a row": (lambda m, x: m.b(F.relu(m.a(x))).exp() * m.b(F.relu(m.a(x))).sin(), 6),
}


@pytest.mark.parametrize("name", ONCE)
def test_it_is_computed_once(name: str) -> None:
    run, count = ONCE[name]
    model, x = live(Net(run)), images(2, 4, 7, 5)
    folded = reparameterize(model, x)
    assert len(calls(folded, x)) == count
    for other in (x, 30 * x, images(3, 4, 6, 8)):
        assert gap(model, folded, other) <= EXACT


def changed(m: Any, x: Tensor) -> Any:
    y = m.b(x)
    z = m.a(y)
    y.sub_(1)
    return z * m.a(y)


APART: dict[str, Callable[[Any, Tensor], Any]] = {
    "the caller's": lambda m, x: (m.a(x), m.a(x)),
    "changed": changed,
    "in place": lambda m, x: F.relu(m.a(x), inplace=True) * F.silu(m.a(x) + 1, inplace=True),
    "by a module": lambda m, x: m.inplace(m.a(x)) * m.a(x),
    "in a view": lambda m, x: m.a(x)[:, 1].tanh_()[:, None] * m.a(x),
    "others": lambda m, x: F.leaky_relu(x, 0.1) * F.leaky_relu(x, 0.2),
}


@pytest.mark.parametrize("name", APART)
def test_what_is_not_the_same_stays_apart(name: str) -> None:
    model, x = live(Net(APART[name])), images(2, 4, 7, 5)
    assert not plan(model, x).steps
    folded = reparameterize(model, x)
    assert gap(model, folded, x) == 0
    if name == "the caller's":
        one, other = folded(x)
        assert one is not other


def test_random_functions_are_drawn_twice() -> None:
    model = live(Net(lambda m, x: F.rrelu(x, training=True) * F.rrelu(x, training=True)))
    assert not plan(model, images(2, 4, 7, 5)).steps


def test_calls_made_one_across_a_change_are_another_function() -> None:
    def careless(m: Any, x: Tensor) -> Any:
        y = m.b(x)
        return m.a(y) * m.a(y)

    model, x = live(Net(changed)), images(2, 4, 7, 5)
    other = live(Net(careless))
    other.load_state_dict(model.state_dict())
    assert gap(model, other, x) > WRONG
