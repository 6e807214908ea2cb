"""ShuffleNet v1: grouped pointwise convolutions, and a shuffle that lets their groups meet.

Zhang et al. 2018, ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
Devices, arXiv:1707.01083.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from refold.blocks.layers import chain
from refold.errors import InputError
from refold.models.backbone import Backbone, Trunk
from refold.models.registry import register_model
from refold.models.units import ConvUnit

_WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Channels of the first stage at width 1, by groups; each further stage has twice as many."""

_STEMS = {0.5: 12, 1.0: 24, 1.5: 24, 2.0: 48}
"""Channels of the first convolution, by width, as in the authors' code."""

_HALF_G8 = 16
"""The same of width 0.5 with 8 groups, where 12 would leave groups of unequal size."""


class ChannelShuffle(nn.Module):
    """Deal the channels of each group out to all groups.

    Args:
        groups: in which the channels lie.
        inverse: collect instead of deal: the authors' published code, whose weights want it.

    Shape:
        (N, C, *) -> the same.

    Examples:
        >>> x = torch.arange(6).reshape(1, 6, 1, 1)
        >>> ChannelShuffle(2)(x).flatten().tolist()
        [0, 3, 1, 4, 2, 5]
        >>> ChannelShuffle(2, inverse=True)(ChannelShuffle(2)(x)).flatten().tolist()
        [0, 1, 2, 3, 4, 5]

    Source: arXiv:1707.01083, section 3.1.
    """

    def __init__(self, groups: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.groups, self.inverse = groups, inverse

    def forward(self, x: Tensor) -> Tensor:
        """Return the channels in their new order."""
        count = x.shape[1] // self.groups
        rows = (count, self.groups) if self.inverse else (self.groups, count)
        return x.unflatten(1, rows).transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        """Return the arguments for `print(model)`."""
        return f"{self.groups}, inverse={self.inverse}"


class ShuffleUnit(nn.Module):
    """relu(x + branch(x)); with stride 2 the averaged map beside the branch, not under it.

    Args:
        channels: of the input.
        out: channels of the output.
        stride: of the depthwise convolution.
        groups: of the pointwise convolutions.
        first_groups: of the first of them.
        inverse: shuffle as the authors' published code does: the other way round, and behind the
            depthwise convolution.
        deploy: build the plain form.

    Shape:
        (N, channels, H, W) -> (N, out, H / stride, W / stride).

    Source: arXiv:1707.01083, figure 2.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        stride: int,
        groups: int,
        *,
        first_groups: int | None = None,
        inverse: bool = False,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        inner = -(-out // (4 * groups)) * groups  # a quarter, rounded up to whole groups
        made = out - channels if stride > 1 else out
        first = groups if first_groups is None else first_groups
        self.reduce = ConvUnit(channels, inner, 1, groups=first, activation=nn.ReLU, deploy=deploy)
        self.inverse = inverse
        self.shuffle = ChannelShuffle(groups, inverse=inverse) if groups > 1 else nn.Identity()
        self.depthwise = ConvUnit(inner, inner, 3, stride, 1, groups=inner, deploy=deploy)
        self.expand = ConvUnit(inner, made, 1, groups=groups, deploy=deploy)
        self.average = nn.AvgPool2d(3, stride, 1) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's value."""
        y = self.reduce(x)
        y = self.shuffle(self.depthwise(y)) if self.inverse else self.depthwise(self.shuffle(y))
        y = self.expand(y)
        if self.average is None:
            return (x + y).relu()
        return torch.cat([self.average(x), y.relu()], 1)


class ShuffleNetV1(Backbone):
    """ShuffleNet v1.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        deploy: build the plain form.
        depths: units of each stage.
        groups: of the pointwise convolutions: 1, 2, 3, 4 or 8.
        width: factor of the channels: 0.5, 1, 1.5 and 2 are the authors'.
        inverse_shuffle: shuffle as the authors' published code does (see `ShuffleUnit`), whose
            weights want it; otherwise as the paper does.
        bias: whether the classifier has a bias; the authors' code has none.

    Raises:
        InputError: when the paper has no such groups, or the width leaves groups uneven.

    Examples:
        >>> net = ShuffleNetV1(10, groups=8, width=0.5).eval()
        >>> net(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])

    Source: arXiv:1707.01083, table 1.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        deploy: bool = False,
        *,
        depths: Sequence[int] = (4, 8, 4),
        groups: int = 3,
        width: float = 1.0,
        inverse_shuffle: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__(num_classes, in_chans)
        first, widths = _widths(groups, width)
        stem = ConvUnit(in_chans, first, 3, 2, 1, activation=nn.ReLU, deploy=deploy)
        self.stem, trunk = chain(conv=stem, maxpool=nn.MaxPool2d(3, 2, 1)), Trunk(self, in_chans)
        trunk.map("stem.conv", first, 2)
        trunk.run("stem.maxpool", stride=2)
        options: dict[str, Any] = {"inverse": inverse_shuffle, "deploy": deploy}
        for stage, (depth, out) in enumerate(zip(depths, widths, strict=True), 2):
            for channels, stride in trunk.stage(f"stage{stage}", depth, out):
                # So few channels that groups of them would be too narrow, the paper says.
                own = 1 if stage == 2 and stride == 2 else groups
                unit = ShuffleUnit(channels, out, stride, groups, first_groups=own, **options)
                trunk.append(unit)
        trunk.finish(bias=bias)


def _widths(groups: int, width: float) -> tuple[int, list[int]]:
    """Return the channels of the stem and of the stages."""
    if groups not in _WIDTHS:
        raise InputError(f"groups must be one of {', '.join(map(str, _WIDTHS))}, got {groups}")
    stem, first = _STEMS.get(width, int(24 * width)), int(_WIDTHS[groups] * width)
    stem = _HALF_G8 if (groups, width) == (8, 0.5) else stem
    if first % groups or (first - stem) % groups or not 0 < stem < first:
        raise InputError(
            f"width {width} gives {stem} and {first} channels: the difference must divide into "
            f"{groups} groups"
        )
    return stem, [first, 2 * first, 4 * first]


for _groups in _WIDTHS:
    for _width, _suffix in ((0.5, "_x0_5"), (1.0, ""), (1.5, "_x1_5"), (2.0, "_x2_0")):
        register_model(f"shufflenetv1_g{_groups}{_suffix}", groups=_groups, width=_width)(
            ShuffleNetV1
        )
