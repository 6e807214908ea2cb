"""RepMLP: a fully connected layer on feature maps that trains with convolutions beside it.

Ding et al. 2021, RepMLP: Re-parameterizing Convolutions into Fully-connected Layers for Image
Recognition, arXiv:2105.01883, and its successor RepMLPNet (CVPR 2022, arXiv:2112.11081). Both train
with convolutions and ship linear layers alone. Unlike in the authors' conversion, in and out
channels may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from refold.algebra.geometry import Size
from refold.blocks.layers import Maker, chain
from refold.blocks.partition import Grid, PartitionBlock, linear_of
from refold.errors import GeometryError


class RepMLPBlock(PartitionBlock):
    """Global, Partition and Local Perceptron; three linear layers when deployed.

    The map is cut into partitions. The Global Perceptron adds to each what two linear layers make
    of the normed averages of all (it is left out where the map is one partition). On each
    partition, FC3 (a grouped 1x1 over the flattened partition) and the convolutions are added; the
    latter pad with zeros at the partition's border, not at the map's.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        img_size: of the maps, int or (height, width).
        partition: size of a partition, int or (height, width); maps that it does not divide are
            padded below and to the right.
        groups: of FC3 and of the convolutions.
        kernels: of the convolutions, odd, int or (height, width).
        reduction: how many times narrower the two global layers are in between.
        global_perceptron: whether it has these layers.
        fc3_window: size of a convolution in FC3's place, an ablation of the paper; None for FC3.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Shape:
        (N, in_channels, *img_size) -> (N, out_channels, *img_size).

    Raises:
        GeometryError: when a kernel does not fit the partition, groups do not divide the channels,
            or `reduction` is larger than what it reduces.

    Examples:
        >>> block = RepMLPBlock(4, 6, img_size=8, partition=(4, 2), groups=2, kernels=[1])
        >>> x = torch.randn(2, 4, 8, 8)
        >>> before = block.eval()(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5)
        True

    Source: arXiv:2105.01883, section 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        img_size: Size,
        partition: Size,
        groups: int = 1,
        kernels: Sequence[Size] = (1, 3, 5),
        reduction: int = 1,
        global_perceptron: bool = True,
        fc3_window: Size | None = None,
        deploy: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        grid, make = Grid.of(img_size, partition), Maker(device, dtype, deploy)
        channels = (in_channels, out_channels)
        super().__init__(
            grid, channels, groups, kernels, make, norm_on_map=False, window=fc3_window
        )
        self.is_global = global_perceptron and not grid.is_one
        if not self.is_global:
            return
        numbers = in_channels * grid.parts[0] * grid.parts[1]
        if not 1 <= reduction <= numbers:
            raise GeometryError(f"reduction {reduction} must be from 1 to {numbers}")
        pool = nn.AvgPool2d(grid.partition)
        self.avg = pool if deploy else chain(avg=pool, bn=make.norm(in_channels, 2))
        self.fc1_fc2 = chain(
            fc1=nn.Linear(numbers, numbers // reduction, **make.lasting),
            relu=nn.ReLU(),
            fc2=nn.Linear(numbers // reduction, numbers, **make.lasting),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value."""
        whole = self.grid.padded(x, self.channels[0])
        parts = self.grid.cut(whole)
        if self.is_global:
            rows, columns = self.grid.parts
            summary = self.fc1_fc2(self.avg(whole).flatten(1))
            parts = parts + summary.reshape(-1, self.channels[0], rows, 1, columns, 1)
        value = self.perceive(self.grid.stack(parts, self.channels[0]))
        return value if self.grid.is_whole else self.grid.join(value, self.channels[1])

    def switch_to_deploy(self) -> None:
        """Become three linear layers: all convolutions and norms go into them.

        Raises:
            RefusedError: in training mode, or when a folded value does not fit the block's
                precision.
        """
        folds = not self.deploy
        super().switch_to_deploy()
        if folds and self.is_global:
            summary = self.fc1_fc2
            first = cast(nn.Linear, summary.fc1)
            (h, w), (rows, columns) = self.grid.partition, self.grid.parts
            example = first.weight.new_empty(1, self.channels[0], rows * h, columns * w)
            summary.fc1 = linear_of(nn.Sequential(self.avg, nn.Flatten(), first), example)
            self.avg = nn.AvgPool2d(self.grid.partition)


class RepMLPNetBlock(PartitionBlock):
    """FC3 shared by sets of channels, convolutions beside it, and a gate over all channels.

    The channels come in groups of `sets`; every such group is mixed by the same weights, set by set
    (FC3 and the depthwise convolutions have `sets` groups). The result is multiplied by a gate
    computed from the means of all channels.

    Args:
        channels: in and out.
        img_size: of the maps, int or (height, width).
        partition: size of a partition, int or (height, width); None for the whole map.
        sets: how many weight sets the channels share; divides `channels`.
        kernels: of the convolutions, odd, int or (height, width).
        reduction: how many times narrower the gate is in between.
        deploy: build the plain form.
        device: of the tensors.
        dtype: of the tensors.

    Shape:
        (N, channels, *img_size) -> the same.

    Raises:
        GeometryError: when a kernel does not fit the partition, or `sets` does not divide
            `channels`.

    Examples:
        >>> block = RepMLPNetBlock(8, img_size=4, sets=2)
        >>> x = torch.randn(2, 8, 4, 4)
        >>> before = block.eval()(x)
        >>> torch.allclose(block.fuse()(x), before, atol=1e-5)
        True

    Source: arXiv:2112.11081, section 3.
    """

    def __init__(
        self,
        channels: int,
        *,
        img_size: Size,
        partition: Size | None = None,
        sets: int = 1,
        kernels: Sequence[Size] = (1, 3),
        reduction: int = 4,
        deploy: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        grid = Grid.of(img_size, img_size if partition is None else partition)
        if sets < 1 or channels % sets:
            raise GeometryError(f"sets {sets} must divide channels {channels}")
        if not 1 <= reduction <= channels:
            raise GeometryError(f"reduction {reduction} must be from 1 to {channels}")
        make = Maker(device, dtype, deploy)
        super().__init__(grid, (sets, sets), sets, kernels, make, norm_on_map=True)
        self.width = channels
        narrow = channels // reduction
        self.gp = chain(
            fc1=nn.Conv2d(channels, narrow, 1, **make.lasting),
            relu=nn.ReLU(),
            fc2=nn.Conv2d(narrow, channels, 1, **make.lasting),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's value."""
        gate = self.gp(x.mean((2, 3), keepdim=True)).sigmoid()
        parts = self.grid.cut(self.grid.padded(x, self.width))
        value = self.perceive(self.grid.stack(parts, self.channels[0]))
        return self.grid.join(value, self.width) * gate
