"""Weighted sums over a stack of branches, however they are spelled: one convolution.

The oracle is the model's own forward in float64; the control leaves the weights out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import EXACT, WRONG, gap, images, live
from refold import reparameterize

Run = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, run: Run, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.run = run
        self.branches = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)),
                nn.Conv2d(3, 4, 1, stride=2),
                nn.AvgPool2d(1, 2),
            ]
        )
        self.branches[2] = nn.Sequential(nn.Conv2d(3, 4, 1), self.branches[2])
        self.weights = nn.Parameter(torch.randn(3))
        self.each = nn.Parameter(torch.randn(3, 4))
        self.places = nn.Parameter(torch.randn(3, 1, 1, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.run(self, x))


def stack(model: Net, x: Tensor, dim: int = 0) -> Tensor:
    return torch.stack([branch(x) for branch in model.branches], dim)


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(layer, nn.Conv2d) for layer in model.modules())


ONE: dict[str, Run] = {
    "product, then sum": lambda m, x: (m.weights.view(-1, 1, 1, 1, 1) * stack(m, x)).sum(0),
    "axis 1": lambda m, x: (stack(m, x, 1) * m.weights.view(3, 1, 1, 1)).sum(dim=1),
    "axis 2": lambda m, x: (stack(m, x, 2) * m.weights.view(3, 1, 1)).mean(2),
    "by channel": lambda m, x: (stack(m, x) / m.each[:, None, :, None, None]).sum(-5),
    "two products": lambda m, x: (2 * stack(m, x, -1) * m.weights).sum(-1),
    "einsum": lambda m, x: torch.einsum("k, kbchw -> bchw", m.weights.softmax(0), stack(m, x)),
    "einsum, last": lambda m, x: torch.einsum("bchwk,k->bchw", stack(m, x, 4), m.weights),
    "einsum, ellipsis": lambda m, x: torch.einsum("k,k...->...", m.weights, stack(m, x)),
    "einsum by channel": lambda m, x: torch.einsum("ck,bkchw->bchw", m.each.T, stack(m, x, 1)),
    "tensordot": lambda m, x: torch.tensordot(m.weights, stack(m, x), dims=1),
    "matrix": lambda m, x: stack(m, x, -1) @ m.weights,
    "scaled matrix": lambda m, x: torch.matmul(stack(m, x, -1) * 0.5, m.weights),
}


@pytest.mark.parametrize("name", ONE)
def test_it_is_one_convolution(name: str) -> None:
    x = images(2, 3, 7, 5)
    model = live(Net(ONE[name]))
    folded = reparameterize(model, x)
    assert convolutions(folded) == 1
    for other in (x, 20 * x, images(3, 3, 6, 8)):
        assert gap(model, folded, other) <= EXACT


STAYS: dict[str, Run] = {
    "by place": lambda m, x: (stack(m, x) * m.places).sum(0),
    "by image": lambda m, x: (stack(m, x) * m.weights[:2].view(1, 2, 1, 1, 1)).sum(0),
    "another axis": lambda m, x: (stack(m, x, 2) * m.weights.view(3, 1, 1)).sum(1),
    "axis kept": lambda m, x: (stack(m, x) * m.weights.view(3, 1, 1, 1, 1)).sum(0, keepdim=True),
    "from the input": lambda m, x: torch.einsum("k,kbchw->bchw", x.mean((0, 2, 3)), stack(m, x)),
    "two axes gone": lambda m, x: torch.einsum("k,kbchw->bhw", m.weights, stack(m, x)),
    "turned": lambda m, x: torch.einsum("k,kbchw->bcwh", m.weights, stack(m, x)),
    "matrix of several": lambda m, x: stack(m, x, -1) @ m.each,
    "powers": lambda m, x: (stack(m, x) ** 2 * m.weights.view(3, 1, 1, 1, 1)).sum(0),
}


@pytest.mark.parametrize("name", STAYS)
def test_other_sums_stay(name: str) -> None:
    x = images(2, 3, 7, 5)
    model = live(Net(STAYS[name]))
    folded = reparameterize(model, x)
    assert convolutions(folded) == 3
    assert gap(model, folded, x) <= EXACT


def test_a_stack_that_others_read_stays() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        whole = stack(m, x)
        return torch.einsum("k,kbchw->bchw", m.weights, whole) * whole.amax(0)

    x = images(2, 3, 7, 5)
    model = live(Net(run))
    assert gap(model, reparameterize(model, x), x) <= EXACT


def test_a_fold_without_the_weights_would_show() -> None:
    x = images(2, 3, 7, 5)
    model, naive = live(Net(ONE["einsum"])), live(Net(lambda m, y: stack(m, y).sum(0)))
    naive.load_state_dict(model.state_dict())
    assert gap(model, naive, x) >= WRONG
