"""Norms of rows beside linear layers: one layer for (N, C), another function for (N, L, C)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_linear_bn_eval

import refold
from helpers.traps import live

X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Sum(nn.Module):
    """Two linear layers whose sum is normed: the code is written anew."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(6, 8), nn.Linear(6, 8), nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.one(x) + self.two(x))


class Called(nn.Module):
    """The norm as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.norm
        return F.batch_norm(self.one(x), n.running_mean, n.running_var, n.weight, n.bias)


NETS = {
    "behind": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()),
    "before": lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8)),
    "twice": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8)
    ),
    "sum": Sum,
    "function": Called,
}


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm1d) for part in model.modules())


@pytest.mark.parametrize("name", NETS)
def test_where_the_network_also_takes_lengths_the_norm_stays(name: str) -> None:
    model = live(NETS[name]())
    folded = refold.reparameterize(model, X)
    maps = torch.randn(2, 6 if name == "before" else 8, 6, dtype=torch.float64)
    for x in (X, maps, X[:1]):
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    assert "scales another axis" in str(refold.plan(model, X))


def test_the_naive_fold_answers_wrongly() -> None:
    model = live(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)))
    naive = fuse_linear_bn_eval(model[0], model[1])
    maps = torch.randn(2, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(naive(X), model(X), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(naive(maps), model(maps), atol=1e-3)


HEADS = {
    "flattened": lambda: [nn.Flatten()],
    "pooled": lambda: [nn.AdaptiveAvgPool2d(1), nn.Flatten()],
}


@pytest.mark.parametrize("head", HEADS)
def test_where_the_code_fixes_the_axes_the_norm_goes(head: str) -> None:
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *HEADS[head]()]
    image = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    features = nn.Sequential(*body)(image.float()).shape[1]
    model = live(nn.Sequential(*body, nn.Linear(features, 7), nn.BatchNorm1d(7)))
    folded = refold.reparameterize(model, image)
    assert norms(folded) == 0
    torch.testing.assert_close(folded(image), model(image), rtol=1e-10, atol=1e-10)


def test_where_no_length_fits_the_norms_go() -> None:
    parts = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.BatchNorm1d(5)]
    model = live(nn.Sequential(*parts))
    folded = refold.reparameterize(model, X)
    assert norms(folded) == 0
    torch.testing.assert_close(folded(X), model(X), rtol=1e-10, atol=1e-10)
