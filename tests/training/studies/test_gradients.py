"""The correlation of gradients: 1 where a network is linear, 0 where they shatter.

Oracle: the gradient written by hand.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import refold
from refold.training.seeds import generator_of
from refold.training.studies.gradients import correlation


class Waves(nn.Module):
    """Has the gradient `speed * cos(speed * x)` in each input."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self.speed = speed

    def forward(self, x: Tensor) -> Tensor:
        return (self.speed * x).sin().flatten(1)


def images(count: int = 4) -> list[Tensor]:
    torch.manual_seed(3)
    return list(torch.rand(count, 1, 12, 12))


@pytest.mark.parametrize("speed", [0.5, 80.0, 4000.0])
def test_against_the_gradient_by_hand(speed: float) -> None:
    one, other = images(2)
    weights = torch.randn(144, generator=generator_of(5, "gradients"))
    wanted = []
    for step in range(16):
        here, there = (
            (speed * (one + (other - one) * at)).cos().flatten() * weights
            for at in (step / 15, step / 15 + 1 / 256)
        )
        wanted.append(here @ there / (here.norm() * there.norm()))
    mean = float(torch.stack(wanted).mean())
    assert correlation(Waves(speed), [one, other], seed=5) == pytest.approx(mean, abs=1e-3)


def test_fast_waves_shatter_and_slow_ones_do_not() -> None:
    assert correlation(Waves(0.1), images()) > 0.999
    assert abs(correlation(Waves(1e5), images())) < 0.1


@pytest.mark.slow
def test_residuals_keep_what_depth_takes_from_plain_networks() -> None:
    found = {}
    for name in ("repvgg_37", "resnet_37"):
        torch.manual_seed(0)
        net = refold.create_model(
            name, num_classes=10, in_chans=1, large_stem=False, width=0.125, deploy=False
        )
        net.train()(torch.stack(images(32)))  # the norms see a batch
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        net(torch.stack(images(32)))
        found[name] = correlation(net.eval(), images())
    assert found["resnet_37"] > found["repvgg_37"] + 0.1
