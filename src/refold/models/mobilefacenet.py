"""MobileFaceNet: inverted residuals, and a head that weighs each pixel of the last map.

Chen et al. 2018, MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile
Devices, arXiv:1804.07573.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from refold.blocks import BranchedBlock
from refold.blocks.layers import Maker, WindowMean, chain
from refold.blocks.spec import ConvSpec
from refold.errors import InputError
from refold.models.backbone import Backbone, Trunk, make_classifier
from refold.models.registry import register_model
from refold.models.units import ConvUnit

Pool = Literal["gdc", "gap", "gdc+gap"]
"""How the last map becomes a vector: weighed, averaged, or the sum of both before one norm."""

POOLS: tuple[Pool, ...] = ("gdc", "gap", "gdc+gap")

_ROWS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
"""Expansion, channels, blocks and stride of the first block."""


def _unit(
    channels: int,
    out: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    *,
    groups: int = 1,
    act: bool = True,
    deploy: bool = False,
) -> nn.Module:
    activation = partial(nn.PReLU, out) if act else None
    where = (channels, out, kernel, stride, padding, 1, groups)
    return ConvUnit(*where, activation=activation, deploy=deploy)


class InvertedResidual(nn.Module):
    """x + project(depthwise(expand(x))), without the sum where the shape changes.

    Args:
        channels: of the input.
        out: channels of the output.
        hidden: channels of the depthwise convolution.
        stride: of the depthwise convolution.
        deploy: build the plain form.

    Shape:
        (N, channels, H, W) -> (N, out, H / stride, W / stride).
    """

    def __init__(
        self, channels: int, out: int, hidden: int, stride: int, deploy: bool = False
    ) -> None:
        super().__init__()
        self.has_shortcut = stride == 1 and channels == out
        self.expand = _unit(channels, hidden, 1, deploy=deploy)
        self.depthwise = _unit(hidden, hidden, 3, stride, 1, groups=hidden, deploy=deploy)
        self.project = _unit(hidden, out, 1, act=False, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value; the projection has no activation."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_shortcut else y


class GlobalDepthwise(BranchedBlock):
    """A map to a vector: a depthwise convolution as large as the map, and its norm.

    With all weights 1 / (H W) the convolution is the global average, which is why an average beside
    it folds into it. No activation follows.

    Args:
        channels: of the map.
        size: height and width of the map.
        average: whether the global average is added before the norm.
        deploy: build the plain form.

    Shape:
        (N, C, H, W) -> (N, C, 1, 1).

    Examples:
        >>> import torch
        >>> GlobalDepthwise(8, (7, 6), average=True)(torch.zeros(2, 8, 7, 6)).shape
        torch.Size([2, 8, 1, 1])

    Source: arXiv:1804.07573, section 3.1.
    """

    deploy_name: ClassVar[str] = "conv"
    main: ClassVar[tuple[str, str]] = ("conv", "bn")

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        average: bool = False,
        deploy: bool = False,
    ) -> None:
        spec = ConvSpec.of(channels, channels, size, groups=channels)
        super().__init__(spec, None)
        make = Maker(deploy=deploy)
        self.conv = make.conv(spec)
        self.average = WindowMean(channels, spec, **make.options) if average else None
        self.bn = make.norm(channels, spec.ndim)
        self._finish(make)

    def branches(self, x: Tensor) -> Tensor:
        """Return the normed sum."""
        y = self.conv(x)
        return self.bn(y if self.average is None else y + self.average(x))

    def last_norms(self) -> dict[str, nn.Module]:
        """Return its norm."""
        return {"conv": self.bn}


class MobileFaceNet(Backbone):
    """MobileFaceNet; its head reads maps of one size, so images have the size it was built for.

    Args:
        num_classes: identities of the classifier; 0 for none: the network returns embeddings.
        in_chans: channels of the image.
        deploy: build the plain form.
        image_size: height and width of the images; the paper's are 112 x 112 and 112 x 96.
        pool: how the last map becomes a vector.
        embedding: length of the embedding.
        width: factor of all channels but the embedding's.

    Raises:
        InputError: when there is no such pool.

    Examples:
        >>> import torch
        >>> net = MobileFaceNet(0, image_size=(32, 32), width=0.25).eval()
        >>> net(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 128])

    Source: arXiv:1804.07573, table 1.
    """

    head_names = ("pool", "embedding", "linear")

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        image_size: tuple[int, int] = (112, 112),
        pool: Pool = "gdc",
        embedding: int = 128,
        width: float = 1.0,
    ) -> None:
        super().__init__(num_classes, in_chans, image_size)
        if pool not in POOLS:
            raise InputError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
        channels = int(64 * width)
        self.stem = chain(
            conv=_unit(in_chans, channels, 3, 2, 1, deploy=deploy),
            depthwise=_unit(channels, channels, 3, 1, 1, groups=channels, deploy=deploy),
        )
        trunk = Trunk(self, in_chans)
        trunk.map("stem", channels, 2)
        for stage, (factor, full, depth, first) in enumerate(_ROWS, 1):
            out = int(full * width)
            for channels, stride in trunk.stage(f"stage{stage}", depth, out, first):
                hidden = factor * channels
                trunk.append(InvertedResidual(channels, out, hidden, stride, deploy))
        last = int(512 * width)
        self.conv = _unit(trunk.channels, last, 1, deploy=deploy)
        trunk.map("conv", last)
        sides = (-(-image_size[0] // 16), -(-image_size[1] // 16))  # each stride 2 rounds up
        self.pool = (
            nn.AdaptiveAvgPool2d(1)
            if pool == "gap"
            else GlobalDepthwise(last, sides, average=pool == "gdc+gap", deploy=deploy)
        )
        self.embedding = _unit(last, embedding, 1, act=False, deploy=deploy)
        self.linear = make_classifier(embedding, num_classes)
        self._set_body(trunk.row, trunk.maps)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or the embeddings."""
        x = self.embedding(self.pool(x)).flatten(1)
        return x if pre_logits else self.linear(x)


register_model("mobilefacenet")(MobileFaceNet)
register_model("mobilefacenet_gap", pool="gap")(MobileFaceNet)
register_model("mobilefacenet_gdc_gap", pool="gdc+gap")(MobileFaceNet)
