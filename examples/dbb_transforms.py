"""The six transforms of the Diverse Branch Block, each on its published shape.

Usage: python examples/dbb_transforms.py
"""

from __future__ import annotations

from typing import cast

import torch
from compare import enliven, show
from torch import Tensor, nn

from refold import transforms

CHANNELS, SIZE = 64, 7


class Branches(nn.Module):
    """Layers on one input, added or laid side by side."""

    def __init__(self, layers: list[nn.Conv2d], *, concat: bool = False) -> None:
        super().__init__()
        self.layers, self.concat = nn.ModuleList(layers), concat

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined outputs."""
        outputs = [layer(x) for layer in self.layers]
        return torch.cat(outputs, 1) if self.concat else torch.stack(outputs).sum(0)


def conv(out_channels: int, kernel: int | tuple[int, int], *, bias: bool = True) -> nn.Conv2d:
    """Return a convolution of 64 channels that keeps the map's size."""
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sizes[0] // 2, sizes[1] // 2)
    return nn.Conv2d(CHANNELS, out_channels, sizes, padding=padding, bias=bias, dtype=torch.float64)


def plain(weight: Tensor, bias: Tensor | None, padding: int) -> nn.Conv2d:
    """Return the convolution of a weight and a bias."""
    layer = nn.Conv2d(
        CHANNELS, weight.shape[0], weight.shape[2], padding=padding, dtype=torch.float64
    )
    layer.weight = nn.Parameter(weight)
    layer.bias = None if bias is None else nn.Parameter(bias)
    return layer


def pairs(layers: list[nn.Conv2d]) -> list[tuple[Tensor, Tensor | None]]:
    """Return each layer's weight and bias."""
    return [(layer.weight, layer.bias) for layer in layers]


def main() -> None:
    """Show all six."""
    x = torch.randn(1, CHANNELS, SIZE, SIZE, dtype=torch.float64)

    layer, bn = conv(CHANNELS, 3), nn.BatchNorm2d(CHANNELS, dtype=torch.float64)
    pair = enliven(nn.Sequential(layer, bn))
    mean, var = cast(Tensor, bn.running_mean), cast(Tensor, bn.running_var)
    folded = transforms.conv_bn(layer.weight, layer.bias, mean, var, bn.weight, bn.bias, eps=bn.eps)
    show("I    conv, norm -> conv", pair, plain(*folded, padding=1), x)

    layers = [conv(CHANNELS, 3), conv(CHANNELS, 3)]
    added = transforms.add_branches(pairs(layers))
    show("II   conv + conv -> conv", Branches(layers), plain(*added, padding=1), x)

    first, second = conv(CHANNELS, 1, bias=False), conv(CHANNELS, 3)
    merged = transforms.pointwise_then_kxk(
        first.weight, first.bias, second.weight, second.bias, padding=1
    )
    show("III  1x1, 3x3 -> conv", nn.Sequential(first, second), plain(*merged, padding=1), x)

    layers = [conv(CHANNELS // 2, 3), conv(CHANNELS // 2, 3)]
    joined = transforms.concat_branches(pairs(layers))
    show("IV   [conv, conv] -> conv", Branches(layers, concat=True), plain(*joined, padding=1), x)

    average = transforms.avg_pool_to_conv(CHANNELS, 3, dtype=torch.float64)
    show("V    average pool -> conv", nn.AvgPool2d(3, stride=1), plain(average, None, padding=0), x)

    layers = [conv(CHANNELS, kernel) for kernel in (1, (1, 3), (3, 1), 3)]
    scaled = [(transforms.multi_scale(layer.weight, 3), layer.bias) for layer in layers]
    total = transforms.add_branches(scaled)
    show("VI   1x1 + 1x3 + 3x1 + 3x3 -> conv", Branches(layers), plain(*total, padding=1), x)


if __name__ == "__main__":
    main()
