"""The correlation of gradients: 1 where a network is linear, 0 where they shatter.

Oracle: the gradient written by hand.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from refold.train.studies.gradients import correlation


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


@pytest.mark.parametrize("speed", [0.5, 8.0, 400.0])
def test_against_the_gradient_by_hand(speed: float) -> None:
    one, other = images(2)
    points = torch.stack([one + (other - one) * step / 32 for step in range(33)])
    generator = torch.Generator()
    from refold.train.seeds import generator_of

    generator = generator_of(5, "gradients")
    signs = torch.randn(144, generator=generator)
    slopes = (speed * (speed * points).cos()).flatten(1) * signs
    wanted = F.cosine_similarity(slopes[:-1], slopes[1:]).mean()
    assert correlation(Waves(speed), [one, other], seed=5) == pytest.approx(float(wanted), abs=1e-3)


def test_fast_waves_shatter_and_slow_ones_do_not() -> None:
    assert correlation(Waves(0.1), images()) > 0.999
    assert abs(correlation(Waves(1e4), images())) < 0.1


def test_residuals_keep_what_depth_takes_from_plain_networks() -> None:
    found = {}
    for name in ("repvgg_21", "resnet_21"):
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
    assert found["resnet_21"] > found["repvgg_21"] + 0.05
