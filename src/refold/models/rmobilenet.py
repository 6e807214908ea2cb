"""RMobileNet: a MobileNetV2 whose deploy form is a MobileNetV1.

Meng et al. 2021, RMNet: Equivalently Removing Residual Connection from Networks, arXiv:2111.00687,
section 4.2. Parameter names follow the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from refold.folding import reparameterize
from refold.models.backbone import Backbone, Trunk, init_convs, make_classifier, strides
from refold.models.registry import register_model
from refold.models.residual import Logged, conv_norm, without_residuals


class Row(NamedTuple):
    """Blocks of one width, as MobileNetV2's table has them.

    Args:
        expand: channels inside a block for each of its input.
        out: channels of the output.
        depth: blocks.
        stride: of the first one.
    """

    expand: int
    out: int
    depth: int
    stride: int


V1 = (
    Row(2, 32, 1, 2), Row(3, 32, 1, 1), Row(4, 64, 1, 2), Row(3, 64, 1, 1), Row(4, 128, 1, 2),
    Row(3, 128, 5, 1), Row(4, 256, 1, 2), Row(3, 256, 1, 1),
)  # fmt: skip
"""What becomes MobileNetV1: where a residual is removed, 3 + 1 times the channels are inside."""

V2 = (
    Row(6, 24, 2, 2), Row(6, 32, 3, 2), Row(6, 64, 4, 2), Row(6, 96, 3, 1), Row(6, 160, 3, 2),
    Row(6, 320, 1, 1),
)  # fmt: skip
"""MobileNetV2's own."""


class InvertedResidual(Logged):
    """1x1, depthwise 3x3 and a linear 1x1, beside an identity on the first channels.

    The linear layers merge with those of the next block in the deploy form, so that the width
    between blocks costs nothing there: `free` times the channels may be trained.

    Args:
        channels: of the input, before `free`.
        out: channels of the output, before `free`.
        stride: of the 3x3.
        expand: channels inside for each of the input.
        free: factor of the channels between blocks.
        statistics: see `Logged`; only residuals log.

    Shape:
        (N, channels free, H, W) -> (N, out free, H / stride, W / stride).
    """

    def __init__(
        self, channels: int, out: int, stride: int, expand: int, free: int, statistics: bool
    ) -> None:
        is_residual = stride == 1 and channels == out
        super().__init__(channels, out * free, statistics and is_residual)
        inner = channels * expand
        self.conv = nn.Sequential(
            *conv_norm(channels * free, inner, 1),
            nn.ReLU6(),
            *conv_norm(inner, inner, 3, stride, inner),
            nn.ReLU6(),
            *conv_norm(inner, out * free, 1),
        )
        self.channels, self.more = channels, channels * (free - 1)
        self.is_residual = is_residual

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value."""
        y = self.conv(x)
        if not self.is_residual:
            return y
        kept = x[:, : self.channels] if self.more else x
        y = y + (F.pad(kept, (0, 0, 0, 0, 0, self.more)) if self.more else kept)
        self.log(kept, y)
        return y


class RMobileNet(Backbone):
    """MobileNetV2 of another table, whose linear layers merge when its residuals are removed.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        rows: of the table.
        first: channels behind the first depthwise convolution.
        last: channels of the last 1x1.
        width: factor of all channels but the last ones.
        t_free: factor of the channels between blocks, which the deploy form merges away.
        large_stem: whether the first convolution has stride 2, as for ImageNet; else 1, as for
            CIFAR.
        statistics: log statistics in training, see `Logged`.

    Examples:
        >>> import torch
        >>> rows = (Row(2, 8, 1, 2), Row(3, 8, 1, 1))
        >>> net = RMobileNet(10, rows=rows, first=8, last=16, width=0.5, t_free=2).eval()
        >>> plain = net.deployed(torch.zeros(1, 3, 32, 32))
        >>> [m.out_channels for m in plain.modules() if isinstance(m, nn.Conv2d)]
        [16, 16, 8, 8, 16, 16, 16]

    Source: arXiv:2111.00687, section 4.2, and the authors' repository.
    """

    classifier_path = "classifier.1"
    head_names = ("gap", "classifier")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        rows: Sequence[Row] = V1,
        first: int = 32,
        last: int = 1024,
        width: float = 1.0,
        t_free: int = 1,
        large_stem: bool = True,
        statistics: bool = False,
    ) -> None:
        super().__init__(num_classes, in_chans, (224, 224) if large_stem else (32, 32))
        stem, channels, step = int(32 * width), int(first * width), 2 if large_stem else 1
        self.features = nn.Sequential(
            nn.Sequential(*conv_norm(in_chans, stem, 3, step), nn.ReLU6()),
            nn.Sequential(
                *conv_norm(stem, stem, 3, 1, stem), nn.ReLU6(),
                *conv_norm(stem, channels * t_free, 1),
            ),
        )  # fmt: skip
        trunk = Trunk(self, in_chans)
        trunk.run("features.0", stride=step)
        trunk.map("features.1", channels * t_free)
        for row in rows:
            out = int(row.out * width)
            for stride in strides(row.depth, row.stride):
                self.features.append(
                    InvertedResidual(channels, out, stride, row.expand, t_free, statistics)
                )
                channels = out
                trunk.map(f"features.{len(self.features) - 1}", channels * t_free, stride)
        self.features.append(nn.Sequential(*conv_norm(channels * t_free, last, 1), nn.ReLU6()))
        trunk.map(f"features.{len(self.features) - 1}", last)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), make_classifier(last, num_classes))
        self._set_body(trunk.row, trunk.maps)
        self.init_weights()

    def init_weights(self) -> None:
        """Start as the authors do: normal, of variance 2 / (kernel area x output channels)."""
        init_convs(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or what the classifier reads."""
        x = self.gap(x).flatten(1)
        return x if pre_logits else self.classifier(x)

    def deployed(self, example: Tensor) -> nn.Module:
        """Return depthwise and pointwise convolutions in turn; merging them adds multiply-adds."""
        return reparameterize(without_residuals(self, example), example, allow_growth=True)


register_model("rmobilenet", rows=V1)(RMobileNet)
register_model("rmobilenet_cifar", rows=V1, t_free=8, large_stem=False)(RMobileNet)
register_model("rmobilenetv2", rows=V2, first=16, last=1280)(RMobileNet)
