"""A type that code names is no type that it has read, though a run in float32 gives both alike."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.traps import images

X = images(2, 5, 8).float()
KINDS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


class Normed(nn.Module):
    """A norm by the root of the mean square, computed in float32 whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        given = x.dtype
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(given)


class Gained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = Normed(), nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.first(x) * self.second(x).sigmoid()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.keys, self.values = Normed(), nn.Linear(8, 8), nn.Linear(8, 8)
        self.gain = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        keys, values = self.keys(y), self.values(y) * self.gain
        weights = torch.softmax(keys @ keys.mT, -1, dtype=torch.float32).to(keys.dtype)
        return x + weights @ values


def _errors(model: nn.Module, folded: nn.Module, kind: torch.dtype) -> tuple[float, float]:
    """Return how far two models are apart in a type, and how far rounding moves the first."""
    x = X.to(kind)
    first = copy.deepcopy(model).to(kind)(x)
    second = copy.deepcopy(folded).to(kind)(x)
    assert first.dtype == second.dtype == kind
    return (first - second).abs().max().item(), first.abs().max().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [Gained, Attention])
def test_gains_of_a_norm_in_float32_fold(make: Callable[[], nn.Module], kind: torch.dtype) -> None:
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    folded = refold.reparameterize(model, X)
    names = {name.rpartition(".")[2] for name, _ in folded.named_parameters()}
    assert names == {"weight", "bias"}  # of the linear layers
    assert "norm.weight" not in dict(folded.named_parameters())
    error, size = _errors(model, folded, kind)
    rounding = max(torch.finfo(kind).eps, torch.finfo(torch.float32).eps)
    assert error <= 8 * rounding * size
    assert folded(X[:1]).shape == model(X[:1]).shape


class Reads(nn.Module):
    """Computes in the type of its second argument, and answers in that of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.linear = nn.Parameter(torch.rand(8) + 0.5), nn.Linear(8, 8)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        wide = x.to(like.dtype) * self.gain.to(like.dtype)
        return self.linear(wide.to(x.dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_a_type_that_is_read_is_read_again(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Reads().eval().requires_grad_(False)
    folded = refold.reparameterize(model, (X, X))
    like = X.to(kind)
    assert torch.equal(folded(X, like), model(X, like))
    assert not torch.equal(model(X, X.half()), model(X, X))  # the type matters
