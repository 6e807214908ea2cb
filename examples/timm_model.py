"""A network of timm: fold it, prove it, and go on using it as timm's.

Usage: python examples/timm_model.py [--small]
"""

from __future__ import annotations

import argparse

import timm
import torch
from compare import enliven, show

import refold


def main() -> None:
    """Fold MobileOne-S0, all branches of it, and ask both forms for features."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="64 pixels instead of 224")
    side = 64 if parser.parse_args().small else 224

    # pretrained=True where the hub can be reached; then enliven is not needed.
    model = enliven(timm.create_model("mobileone_s0", num_classes=10).double())
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    folded = refold.reparameterize(model, x)

    show("timm mobileone_s0", model, folded, x)
    print(refold.plan(model, x).summary())
    maps = folded.forward_intermediates(x, intermediates_only=True)
    print("feature maps as before:", [tuple(found.shape) for found in maps])


if __name__ == "__main__":
    main()
