"""New layers have the precision of the model, whatever else its code writes down."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refold import plan, reparameterize

X = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Written(nn.Module):
    """A scale of the model's own and one that its forward writes down."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return ((x + 0.1) * self.scale - 1.25) * torch.tensor(0.7)


@pytest.mark.parametrize("shape", [(3, 1, 1), (1,), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number_of_the_forward_tells_no_precision(shape, dtype) -> None:
    model = Written(*shape).to(dtype).eval()
    x = X.to(dtype)
    for example in (None, x):
        folded = reparameterize(model, example)
        got, wanted = folded(x), model(x)
        assert got.dtype == dtype
        assert (got - wanted).abs().max() <= 8 * torch.finfo(dtype).eps * wanted.abs().max()


class Positions(nn.Module):
    """Nothing in this model tells its precision."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor([2, 0]))

    def forward(self, x):
        return (x * 0.5 + 0.1).index_select(1, self.index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_buffer_of_positions_tells_no_precision(dtype) -> None:
    model, x = Positions().eval(), X.to(dtype)
    for example in (None, x):
        folded = plan(model, example).apply()
        assert folded(x).dtype == dtype
        error = (folded(x) - model(x)).abs().max()
        assert error <= 4 * torch.finfo(dtype).eps * model(x).abs().max()


class Empty(nn.Module):
    """A choice of no channels at all."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor([2]))

    def forward(self, x):
        return x.index_select(1, self.index)[:, 1:]


def test_no_channel_may_be_chosen() -> None:
    model = Empty().eval()
    assert reparameterize(model, X)(X).shape == model(X).shape == (2, 0, 5, 4)
