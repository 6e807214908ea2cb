"""Norms and scales behind a max pool or a pixel shuffle go into the layer in front of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.nightly import some
from helpers.traps import gap, images, live

EXACT = 1e-10
INPUTS = {1: (2, 3, 13), 2: (2, 3, 9, 8), 3: (2, 3, 6, 7, 6)}


def rising(model: nn.Module) -> nn.Module:
    """Return a live model whose norms have no scale below zero."""
    live(model)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase):
                part.weight.abs_()
    return model


class Scaled(nn.Module):
    """A pool and a shuffle as functions, with a scale and a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(3, 12, 3, groups=3, bias=False)
        self.scale, self.mean = (
            nn.Parameter(torch.rand(3, 1, 1)),
            nn.Parameter(torch.randn(3, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.pixel_shuffle(self.conv(x), 2), 3, stride=2, padding=1)
        return y * self.scale * 255 + self.mean


class Bent(nn.Module):
    """A scale behind a ReLU, as scaled activations have it."""

    def __init__(self, bend: nn.Module, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        self.conv, self.bend = nn.Conv2d(3, 4, 3), bend
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor) -> Tensor:
        y = self.bend(self.conv(x)) * self.scale
        return y + self.shift if self.shift else y


NETS = {
    "max pool": (2, lambda: (nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(4))),
    "one axis": (1, lambda: (nn.Conv1d(3, 4, 3), nn.MaxPool1d(2), nn.BatchNorm1d(4))),
    "three axes": (3, lambda: (nn.Conv3d(3, 4, 2), nn.AdaptiveMaxPool3d(2), nn.BatchNorm3d(4))),
    "shuffle": (2, lambda: (nn.Conv2d(3, 12, 3), nn.PixelShuffle(2), nn.BatchNorm2d(3))),
    "functions": (2, lambda: (Scaled(),)),
}


@pytest.mark.parametrize("name", some(NETS, keep=("max pool", "functions")))
def test_the_norm_goes_into_the_layer(name: str) -> None:
    rank, layers = NETS[name]
    model, x = rising(nn.Sequential(*layers())), images(*INPUTS[rank])
    done = refold.plan(model, x)
    folded = refold.reparameterize(model, x)
    assert not done.refusals
    assert not [part for part in folded.modules() if "Norm" in type(part).__name__]
    assert gap(model, folded, x) < EXACT
    assert gap(model, folded, -30 * x) < EXACT


@pytest.mark.parametrize("bend", [nn.ReLU(inplace=True), nn.LeakyReLU(0.2)])
def test_a_scale_alone_passes_a_relu(bend: nn.Module) -> None:
    model, x = live(Bent(bend, 1.7)), images()
    folded = refold.reparameterize(model, x)
    assert not torch.equal(folded.conv.weight, model.conv.weight)
    torch.testing.assert_close(folded.conv.weight, model.conv.weight * 1.7)
    assert gap(model, folded, 5 * x) < EXACT


@pytest.mark.parametrize(
    "model", [Bent(nn.ReLU6(), 1.7), Bent(nn.ReLU(), -1.7), Bent(nn.GELU(), 1.7)]
)
def test_no_other_function_lets_it_pass(model: nn.Module) -> None:
    """The control: a ReLU6 bends at 6 as well, and a negative scale turns a ReLU over."""
    model, x = live(model), images()
    folded = refold.reparameterize(model, x)
    assert torch.equal(folded.conv.weight, model.conv.weight)
    assert gap(model, folded, 5 * x) == 0


def test_a_shift_stays_behind_a_relu() -> None:
    model, x = live(Bent(nn.ReLU(), 1.7, shift=0.3)), images()
    assert gap(model, refold.reparameterize(model, x), 5 * x) < EXACT


def test_a_negative_scale_behind_a_maximum_stays() -> None:
    """The control: a maximum of negated numbers is a minimum."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4))
    model, x = rising(net), images()
    with torch.no_grad():
        model[2].weight[1] *= -1
    naive = nn.Sequential(model[0], model[2], model[1])
    assert gap(model, naive, x) > 1e-3
    assert gap(model, refold.reparameterize(model, x), x) == 0
    [kept] = refold.plan(model, x).refusals
    assert "below zero" in kept.reason


class Two(nn.Module):
    """A pool whose value, or indices, somebody else reads as well."""

    def __init__(self, indices: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.pool, self.indices = nn.MaxPool2d(2, return_indices=indices), indices

    def forward(self, x: Tensor) -> object:
        y = self.pool(self.conv(x))
        y, other = y if self.indices else (y, y.sum())
        return self.norm(y), other


@pytest.mark.parametrize("indices", [False, True])
def test_another_reader_of_the_pool_keeps_the_norm(indices: bool) -> None:
    model, x = rising(Two(indices)), images()
    folded = refold.reparameterize(model, x)
    assert isinstance(folded.norm, nn.BatchNorm2d)
    assert gap(model, folded, x) == 0
