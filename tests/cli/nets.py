"""Tiny networks for the command line: a command needs seconds, not minutes."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from refold.blocks import RepMLPBlock


class Block(nn.Module):
    """Three parallel branches, as RepVGG has them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.point = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.wide(x) + self.point(x) + self.identity(x))


def branchy() -> nn.Module:
    """Two convolutions when folded."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Block(8), nn.Flatten()
    )


def refused() -> nn.Module:
    """A norm before a zero-padded convolution: its shift meets the border."""
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())


def costlier() -> nn.Module:
    """A bottleneck: merging it would be exact, and take many more multiply-adds."""
    return nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.Conv2d(1, 16, 3), nn.ReLU())


def not_finite() -> nn.Module:
    model = branchy()
    next(model.parameters()).data[0] = float("nan")
    return model


def not_a_network() -> str:
    return "a network"


def broken() -> nn.Module:
    raise ValueError("no such file of ours\nsecond line")


ready = branchy()


class WithHead(nn.Module):
    """A block, and a head that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = branchy()
        self.aux = nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return (self.body(x), self.aux(x)) if self.training else self.body(x)


def with_head() -> nn.Module:
    """One part that no recorded call runs."""
    return WithHead()


class Residual(nn.Module):
    """One residual block around a function."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        wide = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), act]
        self.body = nn.Sequential(*wide, nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def residual() -> nn.Module:
    """Two residuals that can be removed."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), Residual(nn.ReLU6()), Residual(nn.ReLU()))


def stubborn() -> nn.Module:
    """One residual that can be removed, and one that cannot."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), Residual(nn.ReLU()), Residual(nn.SiLU()))


def perceptrons() -> nn.Module:
    """RepMLP after a stem: what of it goes where is in the plan."""
    block = RepMLPBlock(4, 6, img_size=9, partition=3, groups=2, kernels=(1, (1, 3), 3))
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 1), act=nn.ReLU(), mlp=block))
