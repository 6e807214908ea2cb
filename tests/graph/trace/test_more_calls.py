"""Layers that another run of the code calls, or reads, once more than the recorded one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.traps import conv, images, live

SIZES = ((2, 4, 12, 12), (3, 4, 7, 9), (1, 4, 4, 4))


class Net(nn.Module):
    """A layer and its norm, and a block of the same; `run` is the forward under test."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv(4, 4), nn.BatchNorm2d(4), nn.ReLU()
        self.block = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4))
        self.run = run

    def forward(self, x: Tensor, more: bool = False) -> Tensor:
        return self.run(self, x, more)


def norm_again(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.norm(net.conv(x))
    return y if x.shape[-1] > 9 else net.norm(y)


def norm_first(net: Any, x: Tensor, more: bool) -> Tensor:
    if x.shape[-1] <= 9:
        x = net.norm(x)
    return net.norm(net.conv(x))


def weight_again(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.norm(net.conv(x))
    return y if x.shape[-1] > 9 else y + F.conv2d(x, net.conv.weight, padding=1)


def by_argument(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.norm(net.conv(x))
    return net.norm(y) if more else y


def block_again(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.block(x)
    return y if x.shape[-1] > 9 else net.block(y)


def across_a_block(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.block(net.norm(net.conv(x)[:, :, 1:-1, 1:-1]))
    return y if x.shape[-1] > 9 else net.block(y)


def act_again(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.act(net.norm(net.conv(x)))
    return y if x.shape[-1] > 9 else net.act(y - 1)


RUNS = [norm_again, norm_first, weight_again, by_argument, block_again, across_a_block, act_again]


@pytest.mark.parametrize("run", RUNS)
def test_the_fold_is_the_model_at_every_size(run: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    model = live(Net(run).double())
    for example in (images(*SIZES[0]).double(), None):
        folded = refold.plan(model, example).apply()
        with torch.no_grad():
            for size in SIZES:
                x = images(*size).double()
                for more in (False, True) if run is by_argument else (False,):
                    wanted, got = model(x, more), folded(x, more)
                    assert (wanted - got).abs().max() <= 1e-9 * wanted.abs().max()


@pytest.mark.parametrize(("run", "left"), [(block_again, 0), (act_again, 0), (norm_again, 1)])
def test_only_what_a_call_takes_apart_is_refused(run: Callable[..., Tensor], left: int) -> None:
    model = live(Net(run).double())
    folded = refold.reparameterize(model, images(*SIZES[0]).double(), drop_unused=True)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == left
