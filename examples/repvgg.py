"""RepVGG: train a kernel, a 1x1 and an identity, deploy one kernel.

Usage: python examples/repvgg.py [--small]
"""

from __future__ import annotations

import argparse

import torch
from compare import enliven, show

import refold
from refold.blocks import RepVGGBlock


def main() -> None:
    """Fold a RepVGG block on the published input, by the verb that folds whole networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="a small input instead of (50, 512, 49, 49)"
    )
    batch, channels, size = (2, 16, 9) if parser.parse_args().small else (50, 512, 49)

    block = RepVGGBlock(channels, channels, 3, padding=1, dtype=torch.float64)
    enliven(block)
    x = torch.randn(batch, channels, size, size, dtype=torch.float64)
    deployed = refold.reparameterize(block, x[:1])

    show("RepVGGBlock -> Conv2d, ReLU", block, deployed, x)
    print(deployed)


if __name__ == "__main__":
    main()
