"""Networks, inputs and comparisons that the pruning tests share."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor, nn

from helpers.random_residuals import conv


def image(channels: int = 3, size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, size, size, generator=generator, dtype=torch.float64)


def difference(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = model(x)
        return float((expected - other(x)).abs().max() / expected.abs().max())


def masked(model: nn.Module, rng: Random, *, bias: bool = True) -> nn.Module:
    """Zero about half the channels of every norm, in place: weights, and biases too if asked."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            off = torch.tensor([rng.random() < 0.5 for _ in range(module.num_features)])
            module.weight.data[off] = 0
            if bias:
                module.bias.data[off] = 0
    return model


def chain(rng: Random, act: nn.Module, *, padded: bool) -> nn.Module:
    """Return a plain network with a depthwise layer, a pool and a classifier."""
    layers = [*conv(3, 8, 3, rng), act, *conv(8, 8, 3, rng, groups=8), act, *conv(8, 6, 3, rng)]
    layers += [act, nn.MaxPool2d(3, 2, 1), *conv(6, 7, 1, rng), act, nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(7, 5)).double().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not padded:
            module.padding = (0, 0)
    return model
