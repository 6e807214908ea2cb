"""PSPNet: a label for every pixel, from a dilated backbone and averages over regions of four sizes.

Zhao et al. 2017, Pyramid Scene Parsing Network, arXiv:1612.01105; with RepMLP in the backbone as
in Ding et al. 2021, RepMLP, arXiv:2105.01883, section 4.5: partitions of 10x10 on its 90x90 maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refold.algebra.geometry import Size
from refold.blocks.partition import pair
from refold.models.registry import register_model
from refold.models.repmlp_resnet import RepMLPResNet
from refold.models.repmlp_units import normed


class PyramidPooling(nn.Module):
    """A map beside averages of it over grids of several sizes, brought back to its size.

    Args:
        channels: of the map.
        out: of each average.
        bins: regions along an axis.
        deploy: build the plain form.

    Shape:
        (N, channels, H, W) -> (N, channels + out * len(bins), H, W).

    Source: arXiv:1612.01105, section 3.2.
    """

    def __init__(
        self, channels: int, out: int, bins: Sequence[int], *, deploy: bool = False
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(count), normed(channels, out, deploy=deploy))
            for count in bins
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the map and its averages side by side."""
        size = x.shape[2:]
        wide = [
            F.interpolate(level(x), size, mode="bilinear", align_corners=True)
            for level in self.levels
        ]
        return torch.cat([x, *wide], 1)


class PSPNet(nn.Module):
    """A dilated ResNet-50, pyramid pooling, and a classifier of pixels; a second one to train.

    Args:
        num_classes: labels of a pixel.
        in_chans: channels of the image.
        deploy: build the plain form, without the second classifier.
        img_size: of the image, int or (height, width).
        bins: regions along an axis that are averaged over.
        dropout: of the maps before a classifier.
        backbone: options of the backbone (see `RepMLPResNet`).

    Examples:
        >>> net = PSPNet(5, img_size=65, stages=(), width=0.125).eval()
        >>> net(torch.zeros(1, 3, 65, 65)).shape
        torch.Size([1, 5, 65, 65])
    """

    def __init__(
        self,
        num_classes: int = 19,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        img_size: Size = 713,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        **backbone: Any,
    ) -> None:
        super().__init__()
        height, width = pair(img_size, "img_size")
        self.num_classes = num_classes
        self.default_cfg = {"input_size": (in_chans, height, width), "num_classes": num_classes}
        options: dict[str, Any] = {"stage_strides": (1, 2, 1, 1), "rates": (1, 1, 2, 4)}
        options.update(backbone)
        whole = RepMLPResNet(0, in_chans, deploy, img_size=(height, width), **options)
        self.backbone = whole.as_features((-2, -1))
        middle, last = self.backbone.feature_info.channels()
        self.ppm = PyramidPooling(last, last // len(bins), bins, deploy=deploy)
        wide = last + last // len(bins) * len(bins)
        self.classifier = _pixels(wide, last // 4, num_classes, dropout, deploy)
        self.aux = None if deploy else _pixels(middle, middle // 4, num_classes, dropout, deploy)

    def forward(self, x: Tensor) -> Any:
        """Return logits (N, num_classes, H, W), in training with those of the second classifier."""
        middle, last = self.backbone(x)
        logits = self._at_size(self.classifier(self.ppm(last)), x)
        if self.aux is None or not self.training:
            return logits
        return logits, self._at_size(self.aux(middle), x)

    def _at_size(self, logits: Tensor, image: Tensor) -> Tensor:
        return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=True)


def _pixels(
    channels: int, hidden: int, num_classes: int, dropout: float, deploy: bool
) -> nn.Sequential:
    return nn.Sequential(
        normed(channels, hidden, 3, deploy=deploy),
        nn.Dropout2d(dropout),
        nn.Conv2d(hidden, num_classes, 1),
    )


register_model("pspnet_resnet50", stages=())(PSPNet)
register_model(
    "pspnet_repmlp_resnet50",
    groups=(4, 8), fc_reductions=(4, 8), partition=10, rates=(1, 1, 1, 2),
)(PSPNet)  # fmt: skip
