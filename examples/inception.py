"""Inception: towers of one make become one tower; what a ReLU keeps apart stays apart.

Usage: python examples/inception.py [--small]
"""

from __future__ import annotations

import argparse

import torch
from compare import enliven, show
from torch import Tensor, nn

import refold


class Towers(nn.Module):
    """Towers on one value, their outputs side by side: the simplified Inception module.

    Args:
        channels: of the input.
        width: of each tower.
        count: how many towers there are.
        bent: whether a ReLU follows each layer.
    """

    def __init__(self, channels: int, width: int, count: int = 3, *, bent: bool = True) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(*_layer(channels, width, 1, bent), *_layer(width, width, 3, bent))
            for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the towers' values side by side."""
        return torch.cat([tower(x) for tower in self.towers], 1)


def _layer(inputs: int, outputs: int, kernel: int, bent: bool) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU() if bent else nn.Identity()]


def main() -> None:
    """Fold towers with and without ReLUs, and a reduction in front of a large kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a small map")
    size = 8 if parser.parse_args().small else 56

    x = torch.randn(1, 64, size, size, dtype=torch.float64)
    for bent in (True, False):
        towers = enliven(Towers(64, 16, bent=bent).double())
        folded = refold.reparameterize(towers, x)
        show(f"three towers{', ReLUs' if bent else ''} -> one", towers, folded, x)
        convs = [part for part in folded.modules() if isinstance(part, nn.Conv2d)]
        assert sorted(conv.groups for conv in convs) == [1, 3]

    # Without a ReLU a reduction is part of the kernel behind it, where someone wants that: it then
    # costs what the reduction saved. With a ReLU there is no such kernel.
    reduction = enliven(nn.Sequential(*_layer(64, 16, 1, False), nn.Conv2d(16, 64, 3)).double())
    print(refold.plan(reduction, x).refusals[0].reason)
    whole = refold.reparameterize(reduction, x, allow_growth=True)
    show("1x1 -> 3x3 without ReLU", reduction, whole, x)


if __name__ == "__main__":
    main()
