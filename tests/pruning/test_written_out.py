"""Functions written as several calls keep channels apart, as the layer of that name does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nightly import some
from helpers.traps import gap, images
from refold.pruning import dropping

Function = Callable[[Tensor], Tensor]
FUNCTIONS: dict[str, Function] = {
    "SiLU": lambda y: y * torch.sigmoid(y),
    "hard swish": lambda y: y * F.relu6(y + 3) / 6,
    "GELU": lambda y: 0.5 * y * (1 + torch.erf(y / 2**0.5)),
    "Mish": lambda y: y * F.softplus(y).tanh(),
    "a square": lambda y: y.relu() ** 2,
    "two of them": lambda y: (y * torch.sigmoid(y)).sub(0.5).abs(),
}


class Chain(nn.Module):
    """Two convolutions and a function; the first has a silent channel."""

    def __init__(self, function: Function, padding: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3)
        self.two, self.function = nn.Conv2d(6, 4, 3, padding=padding), function
        with torch.no_grad():
            self.one.weight[2], self.one.bias[2] = 0, 0.4

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.function(self.one(x)))


@pytest.mark.parametrize("name", some(FUNCTIONS, keep=("SiLU", "GELU", "two of them")))
def test_a_silent_channel_behind_one_goes(name: str) -> None:
    model = Chain(FUNCTIONS[name], 0).double().eval()
    done = dropping(model, images(), round_to=1)
    assert done.model.one.out_channels == 5
    assert gap(model, done.model, 4 * images()) < 1e-9


def test_its_constant_still_meets_the_border() -> None:
    """The control: 0.4 * sigmoid(0.4) is not 0, and the next layer pads with zeros."""
    model = Chain(FUNCTIONS["SiLU"], 1).double().eval()
    done = dropping(model, images(), round_to=1)
    assert done.model.one.out_channels == 6
    assert "pads with 0" in done.kept[0].reason


OTHERS: dict[str, Function] = {
    "a gate of the whole map": lambda y: y * torch.sigmoid(y.mean((1, 2, 3), keepdim=True)),
    "its neighbours": lambda y: y * torch.sigmoid(y.roll(1, 1)),
    "a number per channel": lambda y: y * torch.sigmoid(y + torch.arange(6.0).view(1, -1, 1, 1)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_mixes_or_tells_channels_apart_keeps_them(name: str) -> None:
    model = Chain(OTHERS[name], 0).double().eval()
    done = dropping(model, images(), round_to=1)
    assert done.model.one.out_channels == 6
    assert gap(model, done.model, images()) < 1e-9
