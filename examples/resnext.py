"""ResNeXt: train 32 paths, deploy one grouped convolution.

The paths of form (a) become form (c) by rules that know nothing of ResNeXt: convolutions of one
value are one convolution, functions of its slices one function, convolutions of slices a grouped
convolution, and a sum of convolutions of slices one convolution of the whole.

Usage: python examples/resnext.py [--small]
"""

from __future__ import annotations

import argparse

import torch
from compare import enliven, show
from torch import nn

import refold


def convolutions(model: nn.Module) -> list[tuple[int, int, int, int]]:
    """Return channels in and out, kernel and groups of each convolution, in sorted order."""
    return sorted(
        (part.in_channels, part.out_channels, part.kernel_size[0], part.groups)
        for part in model.modules()
        if isinstance(part, nn.Conv2d)
    )


def main() -> None:
    """Fold form (a), with one norm on the sum and with a norm per path, into form (c)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="four paths and four blocks")
    small = parser.parse_args().small
    options = {"depths": (1, 1, 1, 1), "cardinality": 4, "base": 16} if small else {}
    size = 48 if small else 224

    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    grouped = refold.create_model("resnext50_32x4d", deploy=True, **options)
    for path_norm in (False, True):
        paths = refold.create_model("resnext50_32x4d_paths", path_norm=path_norm, **options)
        enliven(paths.double())
        folded = refold.reparameterize(paths, x)
        title = "norm per path" if path_norm else "norm on the sum"
        show(f"ResNeXt (a), {title}", paths, folded, x)
        assert convolutions(folded) == convolutions(grouped)
    before, after = len(convolutions(paths)), len(convolutions(folded))
    print(f"{before} convolutions -> {after}, the very ones of form (c)")


if __name__ == "__main__":
    main()
