"""A bare Hugging Face model: arguments by name, its output object intact.

Usage: python examples/hugging_face.py
"""

from __future__ import annotations

import torch
from compare import enliven
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

import refold


class Logits(nn.Module):
    """What `compare.show` needs: one tensor in, one out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the logits alone."""
        return self.model(pixel_values=pixel_values).logits


def main() -> None:
    """Fold a small ResNet built from its configuration."""
    from compare import show

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10
    )
    # ResNetForImageClassification.from_pretrained("microsoft/resnet-18") where the hub is reached.
    model = enliven(ResNetForImageClassification(config).double())
    for name, tensor in model.state_dict().items():
        if "normalization" in name and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    folded = refold.reparameterize(model, {"pixel_values": x})

    show("ResNetForImageClassification", Logits(model), Logits(folded), x)
    output = folded(pixel_values=x)
    print(f"{type(output).__name__} with {list(output.keys())}")
    # from_pretrained of a folded model's save_pretrained would build the unfolded one again:
    # write a file with refold.export(folded, "net.onnx", {"pixel_values": x}) instead.


if __name__ == "__main__":
    main()
