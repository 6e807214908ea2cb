"""A detector of ultralytics (AGPL: refold itself never imports it), folded without its own code.

Usage: python examples/ultralytics_detector.py
"""

from __future__ import annotations

import torch
from compare import enliven, show
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel

import refold


class Boxes(nn.Module):
    """What `compare.show` needs: one tensor in, one out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the boxes and scores; the maps behind them are left out."""
        return self.model(images)[0]


def main() -> None:
    """Fold YOLOv9-t: RepConv's branches, and every norm behind a convolution."""
    model = enliven(DetectionModel("yolov9t.yaml", nc=4, verbose=False).double())
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    folded = refold.reparameterize(model, x)

    show("ultralytics yolov9t", Boxes(model), Boxes(folded), x)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (model, folded)]
    print(f"norms: {norms[0]} -> {norms[1]}")


if __name__ == "__main__":
    main()
