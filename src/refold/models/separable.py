"""Separable convolutions in both orders: Xception's and "extreme Inception".

Chollet 2017, Xception: Deep Learning with Depthwise Separable Convolutions, arXiv:1610.02357.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from refold.errors import InputError
from refold.models.units import ConvUnit

First = Literal["depthwise", "pointwise"]


class SeparableConv(nn.Module):
    """A depthwise and a pointwise convolution, and a norm after both.

    Nothing stands between the two unless `between` puts a norm and a ReLU there; bare, they are one
    dense convolution in two factors, which the engine multiplies out only where that costs less.

    Args:
        channels: of the input.
        out: channels of the output.
        kernel: size of the depthwise kernel, odd.
        stride: of the depthwise convolution.
        first: `depthwise` as in Xception, `pointwise` as in an Inception module taken to the
            extreme, where every channel of the 1x1 has a tower of its own.
        between: whether a norm and a ReLU stand between the two, as in Inception.
        deploy: build the plain form of what has norms.

    Raises:
        InputError: when there is no such order.

    Shape:
        (N, channels, H, W) -> (N, out, H / stride, W / stride).

    Examples:
        >>> import torch
        >>> sum(p.numel() for p in SeparableConv(8, 16).parameters()) == 8 * 9 + 8 * 16 + 2 * 16
        True

    Source: arXiv:1610.02357, figure 4 and section 3.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        first: First = "depthwise",
        between: bool = False,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        if first not in ("depthwise", "pointwise"):
            raise InputError(f"first must be 'depthwise' or 'pointwise', got {first!r}")
        deep = channels if first == "depthwise" else out
        wide = (deep, deep, kernel, stride, kernel // 2, 1, deep)
        point = (channels, out, 1)
        rows = (wide, point) if first == "depthwise" else (point, wide)
        if between:
            self.first = ConvUnit(*rows[0], activation=nn.ReLU, deploy=deploy)
        else:
            self.first = nn.Conv2d(*rows[0], bias=False)
        self.second = ConvUnit(*rows[1], deploy=deploy)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed output, without an activation."""
        return self.second(self.first(x))
