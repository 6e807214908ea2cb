"""Modules of parallel towers, and the towers that the Inception articles put into them.

Szegedy et al. 2015, Going Deeper with Convolutions, arXiv:1409.4842 (v1); Szegedy et al. 2016,
Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567 (v2, v3); Szegedy et al.
2017, Inception-v4, Inception-ResNet and the Impact of Residual Connections, arXiv:1602.07261.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from refold.errors import InputError
from refold.models.units import ConvUnit

Kernel = tuple[int, int]
Order = Literal["parallel", "pool_conv", "conv_pool"]
"""Of pooling and convolving where a map is halved and its channels grow."""

ORDERS: tuple[Order, ...] = ("parallel", "pool_conv", "conv_pool")


class Towers(nn.Module):
    """The outputs of all children on one input, one after the other.

    Shape:
        (N, C, H, W) -> (N, sum of the children's channels, H', W').

    Examples:
        >>> Towers(nn.Conv2d(3, 4, 1), nn.Identity())(torch.zeros(1, 3, 5, 5)).shape
        torch.Size([1, 7, 5, 5])
    """

    def __init__(self, *towers: nn.Module) -> None:
        super().__init__()
        for number, tower in enumerate(towers):
            self.add_module(str(number), tower)

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined outputs."""
        return torch.cat([tower(x) for tower in self.children()], 1)


@dataclass(frozen=True)
class TowerMaker:
    """Makes the convolutions and modules of one network.

    Args:
        deploy: build the plain form.
    """

    deploy: bool = False

    def conv(
        self, channels: int, out: int, kernel: int | Kernel = 1, stride: int = 1, *,
        padding: int | Kernel | None = None, act: bool = True,
    ) -> ConvUnit:  # fmt: skip
        """Return a convolution that keeps the map's size where it has no stride."""
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        ring = (size[0] // 2, size[1] // 2) if padding is None else padding
        activation = nn.ReLU if act else None
        return ConvUnit(
            channels, out, size, stride, ring, activation=activation, deploy=self.deploy
        )

    def tower(self, channels: int, *rows: tuple[int, int | Kernel], stride: int = 1) -> nn.Module:
        """Return convolutions in a row, each given as channels and kernel; the last has the stride.

        Examples:
            >>> layers = TowerMaker().tower(8, (4, 1), (6, (1, 7)), (6, (7, 1)))
            >>> layers(torch.zeros(1, 8, 9, 9)).shape
            torch.Size([1, 6, 9, 9])
        """
        layers: list[nn.Module] = []
        for place, (out, kernel) in enumerate(rows, 1):
            layers.append(self.conv(channels, out, kernel, stride if place == len(rows) else 1))
            channels = out
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    # -- v1 ---------------------------------------------------------------------------------------

    def naive(self, channels: int, widths: Sequence[int]) -> nn.Module:
        """Return v1's first idea: 1x1, 3x3, 5x5 and a pool side by side.

        Args:
            channels: of the input; the pool passes them all on.
            widths: of the 1x1, the 3x3 and the 5x5.
        """
        kernels = zip(widths, (1, 3, 5), strict=True)
        convs = [self.conv(channels, out, kernel) for out, kernel in kernels]
        return Towers(*convs, nn.MaxPool2d(3, 1, 1))

    def reduced(
        self, channels: int, widths: Sequence[int], *, factorised: bool = False
    ) -> nn.Module:
        """Return v1's module, where a 1x1 stands before each large kernel and after the pool.

        Args:
            channels: of the input.
            widths: of the 1x1; of the 1x1 before the 3x3, and of the 3x3; the same of the 5x5; of
                the 1x1 after the pool.
            factorised: whether two 3x3 stand for the 5x5, as in v2.
        """
        a, b, c, d, e, f = widths
        large = ((d, 1), (e, 3), (e, 3)) if factorised else ((d, 1), (e, 5))
        return Towers(
            self.conv(channels, a),
            self.tower(channels, (b, 1), (c, 3)),
            self.tower(channels, *large),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), self.conv(channels, f)),
        )

    # -- v2 and v3 --------------------------------------------------------------------------------

    def small_kernels(self, channels: int, pool: int, *, factorised: bool = True) -> nn.Module:
        """Return v2's module for large maps: a 5x5 and two 3x3, or two 3x3 in the 5x5's place.

        Args:
            channels: of the input.
            pool: channels of the pool's 1x1.
            factorised: False for v3's, which keeps the 5x5.
        """
        large = ((48, 1), (64, 3), (64, 3)) if factorised else ((48, 1), (64, 5))
        return Towers(
            self.conv(channels, 64),
            self.tower(channels, *large),
            self.tower(channels, (64, 1), (96, 3), (96, 3)),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), self.conv(channels, pool)),
        )

    def long_kernels(self, channels: int, inner: int, out: int = 192, n: int = 7) -> nn.Module:
        """Return the module for maps of 12 to 20 pixels: 1 x n and n x 1 for each n x n.

        Args:
            channels: of the input.
            inner: channels between the long kernels.
            out: channels of each tower.
            n: length of the kernels.
        """
        row, column = (1, n), (n, 1)
        twice = ((inner, 1), (inner, column), (inner, row), (inner, column), (out, row))
        return Towers(
            self.conv(channels, out),
            self.tower(channels, (inner, 1), (inner, row), (out, column)),
            self.tower(channels, *twice),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), self.conv(channels, out)),
        )

    def wide(self, channels: int) -> nn.Module:
        """Return the module for the smallest maps, whose towers end in 1x3 and 3x1 side by side."""
        return Towers(
            self.conv(channels, 320),
            nn.Sequential(self.conv(channels, 384), self._cross(384)),
            nn.Sequential(self.tower(channels, (448, 1), (384, 3)), self._cross(384)),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), self.conv(channels, 192)),
        )

    def _cross(self, channels: int) -> nn.Module:
        return Towers(self.conv(channels, channels, (1, 3)), self.conv(channels, channels, (3, 1)))

    def reduction(self, channels: int, out: int, order: Order = "parallel") -> nn.Module:
        """Return what halves a map of `channels` and returns `out` channels.

        `pool_conv` squeezes the map before it grows; `conv_pool` convolves at full size, for four
        times the work; `parallel`, which the article proposes, does neither.

        Raises:
            InputError: when there is no such order, or `parallel` has no channels to add.

        Source: arXiv:1512.00567, section 5.
        """
        if order not in ORDERS or (order == "parallel" and out <= channels):
            raise InputError(
                f"order must be one of {', '.join(ORDERS)}, and parallel must add to the "
                f"{channels} channels, got {order!r} with {out}"
            )
        pool = nn.MaxPool2d(3, 2, 1)
        if order == "pool_conv":
            return nn.Sequential(pool, self.conv(channels, out, 3))
        if order == "conv_pool":
            return nn.Sequential(self.conv(channels, out, 3), pool)
        return Towers(self.conv(channels, out - channels, 3, 2), pool)


class ScaledResidual(nn.Module):
    """relu(x + scale * project(towers(x))): the block of Inception-ResNet.

    The scale is a constant, so it folds into the projection.

    Args:
        make: makes the convolutions.
        channels: of the input and the output.
        towers: rows of each tower, as `TowerMaker.tower` takes them.
        scale: of the branch; the paper's are between 0.1 and 0.3.
        act: whether the ReLU follows.

    Shape:
        (N, C, H, W) -> the same.

    Examples:
        >>> block = ScaledResidual(TowerMaker(), 320, TOWERS_A, 0.17)
        >>> block(torch.zeros(1, 320, 4, 4)).shape
        torch.Size([1, 320, 4, 4])

    Source: arXiv:1602.07261, section 3.3.
    """

    def __init__(
        self,
        make: TowerMaker,
        channels: int,
        towers: Sequence[Sequence[tuple[int, int | Kernel]]],
        scale: float,
        *,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.scale, self.act = scale, act
        self.towers = Towers(*(make.tower(channels, *rows) for rows in towers))
        self.project = nn.Conv2d(sum(rows[-1][0] for rows in towers), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value; the projection has a bias and no norm."""
        y = x + self.scale * self.project(self.towers(x))
        return y.relu() if self.act else y


TOWERS_A = (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3)))
"""Of Inception-ResNet-v2's blocks on 35 pixels, 320 channels."""

TOWERS_B = (((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1))))
"""The same on 17 pixels, 1088 channels."""

TOWERS_C = (((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1))))
"""The same on 8 pixels, 2080 channels."""
