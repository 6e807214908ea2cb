"""The residual blocks around RepMLP: an ordinary bottleneck, one with RepMLP in it, a light one.

Ding et al. 2021, RepMLP, arXiv:2105.01883, section 4; parameter names follow the authors'
checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from refold.algebra.geometry import Size
from refold.blocks import RepMLPBlock
from refold.models.units import ConvUnit


def normed(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    dilation: int = 1,
    *,
    act: bool = True,
    deploy: bool = False,
) -> ConvUnit:
    """Return a convolution that keeps the map's size at stride 1, its norm, and a ReLU if wanted.

    Examples:
        >>> normed(4, 8, 3, dilation=2).spec.padding
        (2, 2)
    """
    where = (inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation)
    return ConvUnit(*where, activation=nn.ReLU if act else None, deploy=deploy)


def projection(inputs: int, outputs: int, stride: int = 1, *, deploy: bool = False) -> nn.Module:
    """Return a shortcut: the identity where it fits, else a 1x1 with its norm."""
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return normed(inputs, outputs, 1, stride, act=False, deploy=deploy)


@dataclass(frozen=True)
class Perceptrons:
    """RepMLP's settings in one stage.

    Args:
        img_size: of the stage's maps.
        partition: of the maps.
        groups: of FC3 and the convolutions.
        kernels: of the convolutions.
        reduction: of the channels around the block.
        fc_reduction: of the two global layers.
        deploy: build the plain form.
    """

    img_size: Size
    partition: Size
    groups: int = 1
    kernels: Sequence[Size] = (1, 3, 5)
    reduction: int = 1
    fc_reduction: int = 1
    deploy: bool = False

    def block(self, channels: int) -> RepMLPBlock:
        """Return the block for so many channels."""
        return RepMLPBlock(
            channels,
            channels,
            img_size=self.img_size,
            partition=self.partition,
            groups=self.groups,
            kernels=self.kernels,
            reduction=self.fc_reduction,
            deploy=self.deploy,
        )


class Bottleneck(nn.Module):
    """relu(1x1 - 3x3 - 1x1 + shortcut).

    Args:
        channels: of the input.
        width: of the 3x3.
        out: of the output.
        stride: of the 3x3.
        dilation: of the 3x3.
        deploy: build the plain form.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        out: int,
        stride: int = 1,
        dilation: int = 1,
        *,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.shortcut = projection(channels, out, stride, deploy=deploy)
        self.conv1 = normed(channels, width, deploy=deploy)
        self.conv2 = normed(width, width, 3, stride, dilation, deploy=deploy)
        self.conv3 = normed(width, out, act=False, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value."""
        return (self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x)).relu()


class RepMLPBottleneck(nn.Module):
    """relu(1x1 - 3x3 - RepMLP - 3x3 - 1x1 + shortcut): RepMLP at fewer channels than the 1x1 give.

    Args:
        channels: of the input.
        width: of the 1x1; the RepMLP has `perceptrons.reduction` times fewer channels.
        out: of the output.
        perceptrons: the RepMLP's settings.

    Examples:
        >>> import torch
        >>> block = RepMLPBottleneck(16, 8, 16, Perceptrons(6, 3, kernels=(1, 3), reduction=2))
        >>> block(torch.randn(2, 16, 6, 6)).shape
        torch.Size([2, 16, 6, 6])
    """

    def __init__(self, channels: int, width: int, out: int, perceptrons: Perceptrons) -> None:
        super().__init__()
        deploy, inner = perceptrons.deploy, width // perceptrons.reduction
        self.shortcut = projection(channels, out, deploy=deploy)
        self.btnk_conv1 = normed(channels, width, deploy=deploy)
        self.btnk_conv2 = normed(width, inner, 3, deploy=deploy)
        self.btnk_repmlp = perceptrons.block(inner)
        self.btnk_conv4 = normed(inner, width, 3, deploy=deploy)
        self.btnk_conv5 = normed(width, out, act=False, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value; shape as the input's but for the channels."""
        y = self.btnk_repmlp(self.btnk_conv2(self.btnk_conv1(x))).relu()
        return (self.btnk_conv5(self.btnk_conv4(y)) + self.shortcut(x)).relu()


class RepMLPLight(nn.Module):
    """relu(1x1 - RepMLP - 1x1 + shortcut): no convolution but pointwise ones when deployed.

    Args:
        channels: of the input.
        width: of the RepMLP.
        out: of the output.
        perceptrons: the RepMLP's settings.

    Examples:
        >>> import torch
        >>> block = RepMLPLight(16, 4, 32, Perceptrons((6, 4), (3, 2), groups=2, kernels=(1,)))
        >>> block(torch.randn(2, 16, 6, 4)).shape
        torch.Size([2, 32, 6, 4])
    """

    def __init__(self, channels: int, width: int, out: int, perceptrons: Perceptrons) -> None:
        super().__init__()
        deploy = perceptrons.deploy
        self.shortcut = projection(channels, out, deploy=deploy)
        self.light_conv1 = normed(channels, width, deploy=deploy)
        self.light_repmlp = perceptrons.block(width)
        self.light_conv3 = normed(width, out, act=False, deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value; shape as the input's but for the channels."""
        y = self.light_repmlp(self.light_conv1(x)).relu()
        return (self.light_conv3(y) + self.shortcut(x)).relu()
