"""ACNet: train three kernels, deploy one.

Usage: python examples/acnet.py [--small]
"""

from __future__ import annotations

import argparse
import copy

import torch
from compare import enliven, show

from refold.blocks import ACBlock


def main() -> None:
    """Fold an asymmetric convolution block on the published input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="a small input instead of (50, 512, 49, 49)"
    )
    batch, channels, size = (2, 16, 9) if parser.parse_args().small else (50, 512, 49)

    block = ACBlock(channels, channels, 3, padding=1, dtype=torch.float64)
    enliven(block)
    deployed = copy.deepcopy(block).fuse()

    x = torch.randn(batch, channels, size, size, dtype=torch.float64)
    show("ACBlock -> Conv2d", block, deployed, x)
    print(deployed)


if __name__ == "__main__":
    main()
