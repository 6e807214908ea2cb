"""Gains go into layers that are written out as functions: those become layers of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.traps import images, net, sound

Run = Callable[[Any, Tensor], Tensor]


def drawn(norm: nn.Module) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def gains(model: nn.Module) -> int:
    kinds = (nn.LayerNorm, nn.GroupNorm)
    return sum(len(list(m.parameters())) > 0 for m in model.modules() if isinstance(m, kinds))


def written(run: Run, *, width: int = 4, norm: nn.Module | None = None) -> nn.Module:
    return net(
        run,
        n=drawn(nn.LayerNorm(4) if norm is None else norm),
        w=nn.Parameter(torch.randn(width, 4, dtype=torch.float64)),
        b=nn.Parameter(torch.randn(width, dtype=torch.float64)),
        v=nn.Parameter(torch.randn(4, width, dtype=torch.float64)),
    )


def two(self: Any, x: Tensor) -> Tensor:
    y = self.n(x)
    return F.linear(y, self.w).tanh() + torch.outer(self.b, self.b)[0] * (y @ self.v)


ROWS: dict[str, Run] = {
    "linear": lambda s, x: F.linear(s.n(x), s.w, s.b),
    "linear without a bias": lambda s, x: F.linear(s.n(x), s.w),
    "matrix product": lambda s, x: s.n(x) @ s.w.T,
    "addmm": lambda s, x: torch.addmm(s.b, s.n(x).view(-1, 4), s.w.T).view(2, 5, -1),
    "einsum": lambda s, x: torch.einsum("blc,oc->blo", s.n(x), s.w),
    "read by two": two,
    "a weight made of another": lambda s, x: F.linear(s.n(x), s.w.softmax(1), s.b),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_gain_goes_into_the_function(name: str) -> None:
    done = sound(written(ROWS[name], width=6), images(2, 5, 4))
    model = done.apply()
    assert gains(model) == 0
    assert any(isinstance(layer, nn.Linear) for layer in model.modules())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_without_padding_takes_it(groups: int, stride: int) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.conv2d(self.n(x), self.k, self.b, stride, groups=groups)

    model = written(forward, width=6, norm=nn.GroupNorm(2, 4))
    model.k = nn.Parameter(torch.randn(6, 4 // groups, 3, 2, dtype=torch.float64))
    assert gains(sound(model, images(2, 4, 7, 8)).apply()) == 0


def test_padding_keeps_it() -> None:
    model = written(lambda s, x: F.conv2d(s.n(x), s.k, s.b, padding=1), norm=nn.GroupNorm(2, 4))
    model.k = nn.Parameter(torch.randn(4, 4, 3, 3, dtype=torch.float64))
    done = sound(model, images(2, 4, 7, 8), reason="its gain stays")
    assert gains(done.apply()) == 1


def test_a_tied_weight_keeps_it() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(self.n(self.table(x)), self.table.weight)

    model = net(forward, table=nn.Embedding(9, 4), n=drawn(nn.LayerNorm(4)))
    done = sound(model, torch.arange(6).reshape(2, 3), reason="its gain stays: linear reads it: ")
    assert gains(done.apply()) == 1


def test_a_product_that_mixes_heads_keeps_it() -> None:
    model = written(lambda s, x: torch.einsum("blc,hco->bhlo", s.n(x), s.h))
    model.h = nn.Parameter(torch.randn(2, 4, 3, dtype=torch.float64))
    done = sound(model, images(2, 5, 4), reason="einsum is no linear layer along its channels")
    assert gains(done.apply()) == 1
