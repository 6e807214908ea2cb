"""MobileNetV2 to V1: train with residuals and linear bottlenecks, deploy without either.

The residuals go first (`remove_residuals`); then nothing stands between the linear layers of two
blocks, and they merge (`reparameterize`). What is left is MobileNetV1, layer for layer.

Usage: python examples/rmobilenet.py [--small]
"""

from __future__ import annotations

import argparse

import torch
from compare import show
from torch import Tensor, nn

import refold
from refold.workload import workload_of


def warm_up(net: nn.Module, images: Tensor) -> nn.Module:
    """Return the network in eval mode with live statistics and scales of both signs."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            signs = torch.randint_like(module.weight, 2) * 2 - 1
            module.weight.data = signs * torch.empty_like(signs).uniform_(0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
    return net.eval()


def main() -> None:
    """Take the special MobileNetV2 apart in two steps, and compare with MobileNetV1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="4 images of 96 pixels")
    batch, side = (4, 96) if parser.parse_args().small else (8, 224)
    torch.manual_seed(0)

    x = torch.randn(batch, 3, side, side, dtype=torch.float64)
    net = warm_up(refold.create_model("rmobilenet").double(), x)
    chain = refold.remove_residuals(net, x[:1])
    plain = refold.reparameterize(chain, x[:1], allow_growth=True)
    show("MobileNetV2 -> no residuals", net, chain, x)
    show("MobileNetV2 -> MobileNetV1", net, plain, x)

    image, v1 = torch.zeros(1, 3, 224, 224), refold.create_model("mobilenetv1", deploy=True)
    for name, model in {"with residuals": net, "without": chain, "merged": plain}.items():
        print(f"{name:15} {workload_of(model.float(), image)}")
    print(f"{'MobileNetV1':15} {workload_of(v1.eval(), image)}")


if __name__ == "__main__":
    main()
