"""Scales before a ReLU and norms before a max pool go into the layers behind.

The oracle is the model itself in float64; the control moves a scale below zero as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nightly import some
from helpers.traps import EXACT, WRONG, gap, images, live
from refold import plan, reparameterize

Run = Callable[[Any, Tensor], Any]
INPUTS = {1: (2, 4, 13), 2: (2, 4, 9, 8), 3: (1, 4, 6, 7, 6)}


class Net(nn.Module):
    """Something no norm goes back into, a norm or scale, and layers behind a function of it."""

    def __init__(self, run: Run, act: nn.Module | None = None, rank: int = 2) -> None:
        super().__init__()
        kind, turned = f"Conv{rank}d", f"ConvTranspose{rank}d"
        self.run, self.act, self.rank = run, act or nn.LeakyReLU(0.1), rank
        self.conv = getattr(nn, kind)(4, 6, 3, padding=1, groups=2)
        self.other = getattr(nn, kind)(4, 4, 1, bias=False)
        self.up = getattr(nn, turned)(4, 3, 4, 2, 1)
        self.bare = getattr(nn, kind)(4, 6, 3)
        self.norm = getattr(nn, f"BatchNorm{rank}d")(4)
        self.pool = getattr(nn, f"MaxPool{rank}d")(3, 2, 1)
        self.factor = nn.Parameter(torch.rand(4, *(1,) * rank) + 0.1)
        self.turned = nn.Parameter(torch.randn(4, *(1,) * rank))
        self.linear = nn.Linear(80, 5)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, torch.sinh(x) + x)


def made(run: Run, act: nn.Module | None = None, rank: int = 2) -> tuple[nn.Module, Tensor]:
    x = images(*INPUTS[rank])
    model = Net(run, act, rank).double()
    with torch.no_grad():
        live(model)
        model.norm.weight.abs_()
        model.factor.abs_()
        model.turned[1:3] *= -1
    return model, x


def entries(model: nn.Module, x: Tensor) -> int:
    return sum("through pool or function" in step.rule for step in plan(model, x).steps)


def both(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.factor * x)
    return torch.tanh(m.conv(y)).sum() + F.gelu(m.other(F.leaky_relu(y, 0.2))).sum()


GOES: dict[str, Run] = {
    "quotient": lambda m, x: m.conv(m.act(x / 3)),
    "in place": lambda m, x: m.up(F.relu_(x * 0.3)),
    "by channel": lambda m, x: m.up(m.act(m.factor * x)),
    "several readers": both,
    "norm, pool, rows": lambda m, x: m.linear(m.pool(m.norm(x)).flatten(1)),
    "norm, pool, layer": lambda m, x: m.bare(m.pool(m.norm(x))),
    "scale, pool, mean": lambda m, x: m.other(m.act(m.pool(m.factor * x)).mean((2, 3), True)),
}


@pytest.mark.parametrize("name", GOES)
def test_layers_take_it_in(name: str) -> None:
    model, x = made(GOES[name])
    assert entries(model, x) == 1
    folded = reparameterize(model, x)
    others = [x, 30 * x] + ([] if "rows" in name else [images(3, 4, 8, 11)])
    assert max(gap(model, folded, other) for other in others) <= EXACT


ACTS = [nn.ReLU(), nn.LeakyReLU(0.3), nn.PReLU(), nn.ReLU(inplace=True)]


@pytest.mark.parametrize("rank", some(INPUTS, keep=(1, 2)))
@pytest.mark.parametrize("act", ACTS, ids=str)
def test_functions_and_ranks(act: nn.Module, rank: int) -> None:
    model, x = made(lambda m, y: m.up(m.act(m.factor * y)), act, rank)
    assert entries(model, x) == 1
    assert gap(model, reparameterize(model, x), x) <= EXACT


STAYS: dict[str, Run] = {
    "below zero": lambda m, x: m.conv(m.act(m.turned * x)),
    "shift and function": lambda m, x: m.bare(m.act(m.norm(x))),
    "shift and border": lambda m, x: m.conv(m.pool(m.norm(x))),
    "other function": lambda m, x: m.conv(F.gelu(x / 3)),
    "clamped": lambda m, x: m.conv(F.relu6(x / 3)),
    "another reader": lambda m, x: (lambda y: m.conv(m.act(y)).sum() + y)(x / 3),
    "read later": lambda m, x: (lambda y: torch.sin(m.other(y)) + y)(m.act(x / 3)),
    "result": lambda m, x: (lambda y: (m.conv(m.act(y)), y))(x / 3),
    "what another changes": lambda m, x: (lambda y: (m.conv(F.relu_(y)), x))(x.div_(3)),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_others_see_stays(name: str) -> None:
    model, x = made(STAYS[name])
    assert entries(model, x) == 0
    assert gap(model, reparameterize(model, x), x) <= EXACT


def test_a_scale_below_zero_would_show() -> None:
    model, x = made(STAYS["below zero"])
    naive, _ = made(lambda m, y: m.conv(m.turned * m.act(y)))
    naive.load_state_dict(model.state_dict())
    assert gap(model, naive, x) >= WRONG
